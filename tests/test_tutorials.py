"""The notebooks of tutorials/: they run, and they were committed as they ran."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes

spec = importlib.util.spec_from_file_location("tutorials_run", FOLDER / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@pytest.fixture
def kernels():
    for package in ("nbclient", "ipykernel", "matplotlib_inline"):
        pytest.importorskip(package, reason=f"notebooks are executed with {package}: pip install {package}")


def written(path, *sources):
    """A notebook of these cells."""
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def images(cells):
    return [o for cell in cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]


def test_there_are_eight():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"0{i}_" for i in range(1, 9)] and run.notebooks() == NOTEBOOKS


@pytest.mark.slow
@each
def test_runs(path, tmp_path, kernels):
    for extra in ("tangermeme", "h5py", "pyBigWig", "pyfaidx", "pandas"):
        if extra in path.read_text():
            pytest.importorskip(extra, reason=f"{path.name} needs {extra}: pip install {extra}")
    notebook = run.execute(path, tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    before = json.loads(path.read_text())["cells"]
    assert len(images(notebook.cells)) == len(images(before)) >= 1


@each
def test_committed_as_it_ran(path):
    text = path.read_text()
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run tutorials/run.py"
    assert outputs and not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert images(code)
    assert len(text.encode()) < LARGEST
    assert notebook["metadata"] == run.METADATA and not any(cell["metadata"] for cell in notebook["cells"])
    words = [o.get("text", o.get("data", {}).get("text/plain", "")) for o in outputs]
    assert not [place for place in ("/home/", "/tmp/", "/root/", "site-packages") if place in str(words)]


@each
def test_opens_with_what_one_learns_and_needs(path):
    first = json.loads(path.read_text())["cells"][0]
    text = "".join(first["source"])
    assert first["cell_type"] == "markdown" and text.startswith(f"# {int(path.name[:2])}. ")
    assert "**You learn**" in text and "**You need** Yuzu (`pip install .` in its checkout) and `pip install " in text
    assert f"`{path.name}`" in (FOLDER / "README.md").read_text()


def test_the_kernel_is_this_python_and_the_folder_is_the_one_given(tmp_path, kernels):
    source = "import os, sys\nprint(sys.executable, os.getcwd(), os.environ['OMP_NUM_THREADS'])"
    path = written(tmp_path / "a.ipynb", source)
    (cell,) = run.execute(path, tmp_path).cells
    assert cell.outputs[0].text.split() == [sys.executable, str(tmp_path.resolve()), "1"]


def test_an_error_in_a_notebook_is_an_error(tmp_path, kernels):
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="a claim of the text"):
        run.execute(written(tmp_path / "a.ipynb", "assert False, 'a claim of the text'"), tmp_path)


def test_outputs_are_written_in_place(tmp_path, kernels, monkeypatch, capsys):
    monkeypatch.setattr(run, "HERE", tmp_path)
    paths = [written(tmp_path / f"0{i}_x.ipynb", f"print({i} + 40)") for i in (1, 2)]
    monkeypatch.setattr(sys, "argv", ["run.py", "02"])
    run.main()
    first, second = (json.loads(path.read_text())["cells"][0] for path in paths)
    assert not first["outputs"] and "".join(second["outputs"][0]["text"]) == "42\n" and not second["metadata"]
    assert "02_x.ipynb" in capsys.readouterr().out
    text = paths[1].read_text()
    run.main()
    assert paths[1].read_text() == text  # nothing that changes from run to run
    monkeypatch.setattr(sys, "argv", ["run.py", "7"])
    with pytest.raises(SystemExit, match="no notebook begins with 7"):
        run.main()
