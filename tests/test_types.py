"""The annotations of public functions, as a type checker in an editor sees them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
SNIPPETS = Path(__file__).parent / "typing" / "snippets.py"


@pytest.mark.slow
def test_mypy_knows_what_public_functions_return():
    pytest.importorskip("mypy", reason="types are checked with mypy: pip install mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    found = subprocess.run(
        [*command, "--follow-imports", "silent", str(SNIPPETS)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    errors = {int(line) for line in re.findall(rf"{SNIPPETS.name}:(\d+): error", found.stdout)}
    wanted = {number for number, line in enumerate(SNIPPETS.read_text().splitlines(), 1) if line.endswith("# wrong")}
    assert wanted and errors == wanted, found.stdout + found.stderr
