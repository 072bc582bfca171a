"""The names that completion after ``yuzu.`` and ``help(yuzu)`` show: those that users use, and nothing else."""

import pkgutil
import pydoc
import subprocess
import sys

import pytest

import yuzu

FUNCTIONS = {
    "precompute", "yuzu_ism", "naive_ism", "check", "predict", "saturation_mutagenesis", "hybrid_ism", "handles",
    "epistasis", "dependency_map",
}  # fmt: skip
CLASSES = {
    "Check", "Precomputation", "PrecomputationError", "Rule", "SaturationMutagenesisRawResult", "Windowed",
    "YuzuError", "YuzuWarning",
}  # fmt: skip
MODULES = {
    "attribution", "bigwig", "command_line", "design", "errors", "examples", "handlers", "models", "modisco", "plot", "product",
    "regions", "runs", "scan", "sequence", "taylor", "variants",
}  # fmt: skip


def test_dir_shows_what_users_use():
    assert set(dir(yuzu)) == FUNCTIONS | CLASSES | MODULES | {"__version__"}


def test_dir_is_the_same_before_anything_is_used():
    """Modules that are loaded when they are first used, and those that they import, change nothing."""
    code = "import yuzu; names = dir(yuzu); yuzu.plot, yuzu.command_line, yuzu.models; print(names == dir(yuzu))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


@pytest.mark.parametrize("name", sorted(FUNCTIONS | CLASSES | MODULES))
def test_each_name_is_there(name):
    assert getattr(yuzu, name).__doc__


def test_every_public_module_is_shown():
    found = {module.name for module in pkgutil.iter_modules(yuzu.__path__) if not module.name.startswith("_")}
    assert found == {*MODULES, *FUNCTIONS} - {"handles"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_dir_of_a_module_shows_its_public_names(module):
    found = getattr(yuzu, module)
    assert dir(found) == sorted(found.__all__)
    assert all(getattr(found, name).__doc__ or name.isupper() for name in dir(found))


def test_help_shows_no_internal_name():
    text = pydoc.render_doc(yuzu, renderer=pydoc.plaintext)
    contents, _, rest = text.partition("CLASSES")
    assert "importlib" not in text and "_typing" not in text and "TYPE_CHECKING" not in text
    assert not [line for line in rest.splitlines() if line.startswith("    Any")]
    assert {"__main__", "_engine (package)"} == {
        line.strip() for line in contents.splitlines() if line.strip().startswith("_")
    }  # pydoc lists every module of a package
