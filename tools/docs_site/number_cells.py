"""Markdown extension: cells of a table with a number, such as `0.769 ± 0.002`, get the class `number`: they stay on one line."""

from __future__ import annotations

import re
import xml.etree.ElementTree as etree
from typing import Any

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor

_NUMBER = re.compile(r"\[?[-+~]?[\d.,]+ ?[x%kM]?(?: ?(?:±|,|/|\(|\[) ?[-+]?[\d.,]+ ?[x%kM]?[\])]?)*")


class _Numbers(Treeprocessor):
    def run(self, root: etree.Element) -> None:
        for cell in root.iter("td"):
            if _NUMBER.fullmatch("".join(cell.itertext()).strip()):
                cell.set("class", "number")


class NumberCells(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(_Numbers(md), "number-cells", 14)  # after inline patterns (20)


def makeExtension(**settings: Any) -> NumberCells:
    return NumberCells(**settings)
