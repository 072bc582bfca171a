"""Execute the notebooks of this folder and write their outputs back into them.

    python tutorials/run.py [01 03 ...]    # all, or those whose names begin so

Each runs in a temporary folder, in a kernel of the Python that runs this script, with one thread: threads that wait
for one another on busy cores make times meaningless. What differs from run to run without meaning (timestamps,
versions of the kernel) is not kept. Needs `pip install nbclient ipykernel`, and what the
notebooks draw and read with.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
TIMEOUT = 300  # seconds a cell may take; a whole notebook takes a tenth of it
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks() -> list[Path]:
    """Those of this folder, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.ipynb"))


def execute(path: Path, folder: Path) -> NotebookNode:
    """Run a notebook in `folder`, which should be empty, and return it with its outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises; the message has the traceback.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as settings:
        # No folder of installed kernels: "python3" is then the running interpreter, whatever a user has installed.
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            connection_file=os.path.join(settings, "kernel.json"),
            transport="tcp" if os.name == "nt" else "ipc",
        )
        environment = {
            **os.environ,
            "IPYTHONDIR": settings,
            "JUPYTER_CONFIG_DIR": settings,
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",  # bars, and stages of what takes long on a slow machine, are no output to keep
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses ipywidgets
        }
        client = NotebookClient(notebook, km=manager, timeout=TIMEOUT, record_timing=False, coalesce_streams=True)
        try:
            client.execute(cwd=str(folder), env=environment)
        finally:
            run_sync(manager.shutdown_kernel)(now=True)
    clean(notebook)
    return notebook


def clean(notebook: NotebookNode) -> None:
    """Drop what would differ in every run."""
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names; default: all")
    names = tuple(parser.parse_args().names)
    chosen = [path for path in notebooks() if not names or path.name.startswith(names)]
    if not chosen:
        sys.exit(f"no notebook begins with {' or '.join(names)}")

    import nbformat

    for path in chosen:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)
        seconds, size = time.perf_counter() - begin, path.stat().st_size
        print(f"{path.name:40} {seconds:5.1f} s  {size / 1000:5.0f} kB", flush=True)


if __name__ == "__main__":
    main()
