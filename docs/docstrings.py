"""Docstrings as the site's parser reads them: a blank before each colon, and each name for itself."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?m)^(?:Parameters|Attributes)\n-+\n(?:.*\n?)*?(?=^\w[\w ]*\n-{3,}|\Z)")
NAMES = re.compile(r"(?m)^((?:\*{0,2}\w+, )*\*{0,2}\w+) ?: (.+(?:\n(?:[ \t].*)?)*)")


class OneNameALine(griffe.Extension):
    """Turns ``start, end: int`` into an entry for each of the names, with the type that it has in the docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the lists of parameters and attributes in an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(lambda found: NAMES.sub(self._apart, found[0]), obj.docstring.value)

    @staticmethod
    def _apart(found: re.Match[str]) -> str:
        return "".join(f"{name} : {found[2].rstrip()}\n" for name in found[1].split(", ")) + "\n"
