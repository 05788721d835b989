"""Markdown extension: `$x$` and `$$ x $$` become MathML when the pages are built, so that a browser needs no script and no network."""

from __future__ import annotations

import re
import xml.etree.ElementTree as etree
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor

# A dollar sign next to a blank is a dollar sign.
INLINE = r"(?<![\\$\w])\$(?![\s$])((?:[^$\\\n]|\\.|\n(?!\n))+?)(?<!\s)\$(?![\w$])"


def mathml(formula: str, *, block: bool) -> str:
    """The formula as MathML.

    Raises:
        ValueError: LaTeX that cannot be read, or a command that is not known.
    """
    try:
        made = convert(formula.strip(), display="block" if block else "inline")
    except Exception as error:
        raise ValueError(f"a formula cannot be read: {error!r}. Received: {formula!r}") from error
    unknown = re.search(r"<m[io]>\\\w+</m[io]>", made)
    if unknown:
        raise ValueError(f"a formula has an unknown command, {unknown.group()}. Received: {formula!r}")
    return made


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(mathml(m.group(1), block=False)), m.start(0), m.end(0)


class _Block(BlockProcessor):
    def test(self, parent: etree.Element, block: str) -> bool:
        text = block.strip()
        return text.startswith("$$") and text.endswith("$$") and len(text) > 4

    def run(self, parent: etree.Element, blocks: list[str]) -> None:
        formula = blocks.pop(0).strip()[2:-2]
        holder = etree.SubElement(parent, "div", {"class": "formula"})
        holder.text = self.parser.md.htmlStash.store(mathml(formula, block=True))


class MathML(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.parser.blockprocessors.register(_Block(md.parser), "mathml-block", 85)
        md.inlinePatterns.register(_Inline(INLINE, md), "mathml", 185)  # after code spans (190), before escapes (180)


def makeExtension(**settings: Any) -> MathML:
    return MathML(**settings)
