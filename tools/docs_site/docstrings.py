"""Griffe extension: the sections of a docstring that Google's style does not know, such as "Call arguments:", as Markdown lists."""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Alias, Extension, Object

# Sections whose lines are "name: description" or plain text; all others Griffe reads itself.
OWN_SECTIONS = ("Call arguments", "Output")
# "[e] [h]" in a line of text or of a table, which Markdown would read as a link.
_BRACKETS = re.compile(r"(?m)^((?!    |>>>)[^`\n]*(?:`[^`\n]*`[^`\n]*)*)\] \[")
_ENTRY = re.compile(r"([A-Za-z_*][\w.]*(?:, [A-Za-z_*][\w.]*)*)(?: \(([^()]*)\))?: (.*)")


def markdown_sections(docstring: str) -> str:
    """The docstring with each of `OWN_SECTIONS` written as a bold title and, where its lines are entries, a list."""
    lines, out, at = docstring.split("\n"), [], 0
    while at < len(lines):
        line = lines[at]
        if line == "Example:":
            out.append("Examples: Example")  # the name under which Griffe reads code and text apart
        if not line.endswith(":") or line[:-1] not in OWN_SECTIONS:
            out += [] if line == "Example:" else [line]
            at += 1
            continue
        end = at + 1
        while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
            end += 1
        body = [text[4:] for text in lines[at + 1 : end]]
        while body and not body[-1].strip():
            body.pop()
        out += ["", f"**{line}**", "", *_entries(body), ""]
        at = end
    return "\n".join(out)


def _entries(body: list[str]) -> list[str]:
    """Lines "name: description", continued by indented ones, as a Markdown list; other text as it is."""
    matches = [_ENTRY.fullmatch(line) for line in body]
    if not body or matches[0] is None:
        return body
    out = []
    for line, entry in zip(body, matches, strict=True):
        if entry is None:
            out.append(f"  {line}" if line.startswith(" ") else line)
        else:
            names = ", ".join(f"`{part}`" for part in entry.group(1).split(", "))
            kind = f" ({entry.group(2)})" if entry.group(2) else ""
            out.append(f"- {names}{kind}: {entry.group(3)}")
    return out


class Sections(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **settings: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _BRACKETS.sub(r"\1] \[", markdown_sections(obj.docstring.value))

    def on_package(self, *, pkg: Any, **settings: Any) -> None:
        """Names of `keras_ranking.ops` that load on first use: aliases of where they are."""
        if pkg.name == "keras_ranking":
            ops = pkg["ops"]
            for name, module in ast.literal_eval(str(ops["_LAZY"].value)).items():
                ops.set_member(name, Alias(name, f"{ops.path}.{module}.{name}", parent=ops))
