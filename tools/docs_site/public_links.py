"""Markdown extension: a public name in code, such as `HistoryEncoder` or `kr.data.pack`, links to its place in the API reference.

The names are read from the `:::` lines of docs/api. A name without its room is linked where only one room has it.
"""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as etree
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString

API = Path(__file__).resolve().parents[2] / "docs" / "api"
# Words that are public names too, but mean something else in most sentences.
AMBIGUOUS = {
    *("requests", "coverage", "summary", "targets", "load", "pad", "train", "evaluate", "export", "serve", "auc", "simulate", "pack"),
    *("Request", "Report", "Attention", "Calibration", "Features", "History", "Interaction", "Setwise", "Tokens", "Visibility"),
}


@functools.cache
def identifiers() -> dict[str, str]:
    """{'HistoryEncoder', 'kr.layers.HistoryEncoder', 'keras_ranking.layers.HistoryEncoder'} -> the last of them."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for page in sorted(API.rglob("*.md")):
        for path in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            name = path.rpartition(".")[2]
            found[path] = found[path.replace("keras_ranking", "kr", 1)] = found[path.partition(".")[2]] = path
            if name in seen:
                found.pop(name, None)
            elif name not in AMBIGUOUS:
                found[name] = path
            seen.add(name)
    return found


class _Links(Treeprocessor):
    def run(self, root: etree.Element) -> None:
        self._walk(root)

    def _walk(self, element: etree.Element) -> None:
        for at, child in enumerate(element):
            if child.tag == "code" and not len(child) and child.text:
                identifier = identifiers().get(child.text.removesuffix("()").partition("(")[0])
                if identifier:
                    link = etree.Element("autoref", {"identifier": identifier, "optional": ""})
                    link.tail, child.tail = child.tail, None
                    child.text = AtomicString(child.text)
                    link.append(child)
                    element[at] = link
            elif child.tag not in ("a", "autoref", "pre", "h1", "h2", "h3", "h4", "h5", "h6"):
                self._walk(child)


class PublicLinks(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(_Links(md), "public-links", 15)  # after inline patterns (20)


def makeExtension(**settings: Any) -> PublicLinks:
    return PublicLinks(**settings)
