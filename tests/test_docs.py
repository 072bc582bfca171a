"""The pages of the site: their snippets run, and the reference has every public name."""

import re
from pathlib import Path

import pytest
import torch

import yuzu
from yuzu.examples import load_ctcf_model, load_ctcf_peaks
from yuzu.sequence import decode

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(path for path in DOCS.rglob("*.md") if BLOCK.search(path.read_text()))


def blocks(path):
    return [block for block in BLOCK.findall(path.read_text()) if "--8<--" not in block]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the pages speak of: a genome with the packaged peaks in it, and where they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    peaks = load_ctcf_peaks()
    genome = "ACGTTGCA" * 25
    lines = []
    for name, sequence in zip(peaks.names[:6], decode(peaks.X[:6]), strict=True):
        lines.append(f"chr1\t{len(genome)}\t{len(genome) + 100}\t{name}\t0\t.\t1\t1\t1\t50\n")
        genome += sequence + "ACGTTGCA" * 25
    (tmp_path / "genome.fa").write_text(f">chr1\n{genome}\n")
    (tmp_path / "peaks.narrowPeak").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_snippets_run(page, folder):
    pytest.importorskip("matplotlib", reason="pages draw")
    for package in ("pyfaidx", "pyBigWig"):
        pytest.importorskip(package, reason="pages read genomes and write BigWig files")
    if page.stem == "long-runs":
        pytest.importorskip("zarr", reason="runs write Zarr stores")
        pytest.importorskip("xarray", reason="the page opens one")
    torch.manual_seed(0)
    names = {"model": load_ctcf_model(), "X": load_ctcf_peaks().X[:4], "yuzu": yuzu, "__name__": "snippets"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)  # noqa: S102


def test_the_readmes_snippet_leaves_a_picture(folder):
    pytest.importorskip("matplotlib", reason="it draws")
    (block,) = blocks(ROOT / "README.md")
    exec(compile(block, "README.md", "exec"), {"__name__": "snippet"})
    (picture,) = folder.glob("*.png")
    assert picture.stat().st_size > 10_000


def test_the_readme_is_a_door():
    assert len((ROOT / "README.md").read_bytes()) <= 7_000


def test_links_in_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    missing = [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()]
    assert targets and not missing


def test_files_that_the_architecture_names_are_there():
    named = re.findall(r"`([\w/]+(?:\.py|/))`", (DOCS / "architecture.md").read_text())
    rooms = [ROOT, *(ROOT / "yuzu" / "_engine").glob("*/")]
    missing = [name for name in named if not any((room / name).exists() for room in rooms)]
    assert len(named) > 40 and not missing


def public_names():
    """Of the package, and of the modules that it shows."""
    for name in yuzu.__all__:
        yield f"yuzu.{name}"
    for module in ("attribution", "bigwig", "design", "examples", "handlers", "models", "modisco", "plot", "product", "regions", "runs", "scan", "sequence", "taylor", "variants"):
        found = getattr(yuzu, module)
        listed = getattr(found, "__all__", None)
        if listed is None:
            listed = [n for n, v in vars(found).items() if not n.startswith("_") and getattr(v, "__module__", "") == found.__name__]
        for name in listed:
            value = getattr(found, name)
            if callable(value):
                yield f"yuzu.{module}.{name}"


def test_public_functions_have_examples():
    missing = []
    for name in public_names():
        found = yuzu
        for part in name.split(".")[1:]:
            found = getattr(found, part)
        if not isinstance(found, type) and ">>>" not in (found.__doc__ or ""):
            missing.append(name)
    assert not missing


def test_the_reference_has_every_public_name():
    text = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    for module, members in re.findall(r"^::: (\S+)\n(?:    .*\n)*?      members: \[(.*?)\]", text, re.MULTILINE):
        shown |= {f"{module}.{name.strip()}" for name in members.split(",")}
    # modules that are called as the function in them
    shown |= {name.rpartition(".")[0] for name in shown if re.search(r"\.(\w+)\.\1$", name)}
    helpers, aliases = {"yuzu.sequence.text_lines", "yuzu.sequence.whole_number"}, {"yuzu.handles", "yuzu.Rule", "yuzu.Windowed"}
    passed_over = helpers | aliases
    missing = [name for name in public_names() if name not in shown | passed_over]
    assert not missing
