"""Additions to the pages of this folder: the executed tutorials, the figures, the help of the command line."""

from __future__ import annotations

import os
from pathlib import Path

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from yuzu.command_line import parser

ROOT = Path(__file__).resolve().parents[1]


def linked(text: str) -> str:
    """Turn a notebook's links to other notebooks, and to pages of this folder, into links between pages."""
    return text.replace(".ipynb)", ".md)").replace("](../docs/", "](../")


def on_files(files: Files, config: dict) -> Files:
    """Add each notebook as a page with its stored outputs, and the figures under ``assets/``."""
    for path in sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.ipynb")):
        names = {"unique_key": path.stem, "output_files_dir": path.stem}  # pictures are called alike in all notebooks
        text, resources = MarkdownExporter().from_filename(str(path), resources=names)
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=linked(text)))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    for path in sorted((ROOT / "figs").glob("*.png")):
        files.append(File.generated(config, f"assets/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: dict, files: Files) -> str:
    """Put the text that ``--help`` prints in the place of ``{{ help }}``."""
    if "{{ help }}" not in markdown:
        return markdown
    os.environ["COLUMNS"] = "96"
    yuzu = parser()
    (commands,) = (action for action in yuzu._actions if action.dest == "command")
    for command in commands.choices.values():
        command.epilog = None  # the same as that of `yuzu`
    helps = {"yuzu": yuzu, **{f"yuzu {name}": command for name, command in commands.choices.items()}}
    texts = [f"## {name}\n\n```text\n{command.format_help()}\n```" for name, command in helps.items()]
    return markdown.replace("{{ help }}", "\n\n".join(texts))
