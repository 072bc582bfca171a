"""A virtual environment for each peer, made on demand and installed by name with pip.

They lie in ``benchmarks/.environments``; one whose list of packages changed is made anew. The checkout's
``constraints.txt`` pins the same torch for all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".environments"
CONSTRAINTS = HERE.parent / "constraints.txt"
INSTALL_SECONDS = 1800

# For each environment the packages in order of installation; of those in the second list only the package itself is
# taken: tangermeme and bpnet-lite ask for much that their scoring does not import. Where bpnet-lite's models are, all
# peers that try them run; the checkout's yuzu goes before the published one there.
PACKAGES: dict[str, tuple[list[str], list[str]]] = {
    "published": (["yuzu-ism==0.0.1"], []),
    "tangermeme": (
        ["torch", "numpy", "scipy", "safetensors", "tqdm", "pandas", "numba", "h5py"],
        ["tangermeme==1.6.0", "bpnet-lite==1.1.0", "yuzu-ism==0.0.1"],
    ),
    "fastism": (["tensorflow==2.15.*", "fastism==0.5.1"], []),
}


class NotAvailable(RuntimeError):
    """An environment that cannot be made here, and why."""


def python_of(name: str) -> str:
    """The interpreter of an environment, made if it is not there; ``"main"`` is the one that runs this."""
    if name == "main":
        return sys.executable
    folder = FOLDER / name
    python, done = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps(PACKAGES[name])
    if done.exists() and done.read_text() == wanted:
        return str(python)
    print(f"making the environment {folder.relative_to(HERE.parent)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(folder)])
    with_needs, alone = PACKAGES[name]
    # the Makefile passes PyTorch's index on, for the CPU build if pip's own index holds torch with CUDA
    index = os.environ.get("TORCH_INDEX")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    _call([*pip, *(["--extra-index-url", index] if index else []), *with_needs])
    if alone:
        _call([*pip, "--no-deps", *alone])
    done.write_text(wanted)
    return str(python)


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NotAvailable(f"{' '.join(command[1:4])} took more than {INSTALL_SECONDS} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NotAvailable(lines[0] if lines else f"{' '.join(command[1:4])} ended with {done.returncode}")
