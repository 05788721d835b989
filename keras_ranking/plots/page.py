"""A self-contained HTML page of text, tables and figures: nothing is loaded from elsewhere, and all given text is escaped."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; }
h2 { font-size: 1.25rem; margin-top: 2.6rem; border-bottom: 1px solid #dde; padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 46rem; }
nav { font-size: .9rem; } nav a { margin-right: .9rem; white-space: nowrap; color: #33539e; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #dde; white-space: nowrap; }
th:first-child, td:first-child, th.words, td.words { text-align: left; }
td.words { white-space: normal; min-width: 10rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1.2rem; align-items: start; }
figure { margin: .4rem 0; max-width: 38rem; } figcaption { font-size: .9rem; color: #444d5a; }
pre { background: #f3f5f9; padding: .8rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; display: block; }
@media (max-width: 40rem) { th, td { white-space: normal; padding: .25rem .4rem; } }
"""
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{}</title>\
<style>{}</style></head>
<body>
"""


def page(name: str, parts: Sequence[str]) -> str:
    """The page of parts that are HTML already."""
    return _HEAD.format(html.escape(name), STYLE) + "\n".join(parts) + "\n</body></html>"


def title(text: str, level: int = 1) -> str:
    """A heading."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def section(name: str, parts: Sequence[str]) -> str:
    """A heading that can be linked to, and what stands below it."""
    return _element("section", "\n".join([title(name, 2), *parts]), id=anchor(name))


def anchor(name: str) -> str:
    """The id of a section."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def contents(names: Sequence[str]) -> str:
    """Links to the sections."""
    return "<nav>" + " ".join(_element("a", html.escape(name), href=f"#{anchor(name)}") for name in names) + "</nav>"


def paragraph(text: str) -> str:
    """Text as it is."""
    return f"<p>{html.escape(text)}</p>"


def svg(figure: Any, about: str = "") -> str:
    """A figure of matplotlib as an element of the page; `about` says what it shows, for those who hear the page."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    drawn = text.getvalue()[text.getvalue().index("<svg") :]
    return drawn.replace("<svg", _opening("svg", {"role": "img", "aria-label": about}), 1) if about else drawn


def figure_part(figure: Any, caption: str) -> str:
    """A figure with its caption."""
    return f"<figure>{svg(figure, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def figures(parts: Sequence[str]) -> str:
    """Figures side by side where the page is wide enough."""
    return _element("div", "".join(parts), **{"class": "figures"})


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = ()) -> str:
    """A table that scrolls by itself where the page is narrow; `words` are the columns of text, which are left-aligned."""
    lines = _row("th", header, words) + "".join(_row("td", one, words) for one in rows)
    return _element("div", f"<table>{lines}</table>", **{"class": "wide"})


def cell(value: Any) -> str:
    """A value for a cell: five digits of a float, nothing for None."""
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def _row(tag: str, cells: Sequence[str], words: Sequence[int]) -> str:
    made = [_element(tag, html.escape(text), **({"class": "words"} if place in words else {})) for place, text in enumerate(cells)]
    return f"<tr>{''.join(made)}</tr>"


def _element(tag: str, content: str, **attributes: str) -> str:
    """An element of content that is HTML already."""
    return f"{_opening(tag, attributes)}>{content}</{tag}>"


def _opening(tag: str, attributes: Mapping[str, str]) -> str:
    return " ".join([f"<{tag}", *[name + '="' + html.escape(value, quote=True) + '"' for name, value in attributes.items()]])
