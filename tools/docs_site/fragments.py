"""What the site includes and no one writes by hand: notebooks with their output, `--help` of every command, the font of formulas.

python tools/docs_site/fragments.py        # writes build/docs/ and docs/assets/math.ttf
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "docs"


def notebook_page(path: Path) -> str:
    """A stored notebook as Markdown: text, code, and output with its pictures inside the page."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source.rstrip()}\n```")
            parts += [text for output in cell.outputs if (text := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: Any) -> str:
    if output.output_type == "stream":
        return f"```text {{ .output }}\n{output.text.rstrip()}\n```" if output.text.strip() else ""
    if output.output_type == "error":
        raise ValueError(f"a notebook holds an error: {output.ename}: {output.evalue}")
    data = output.data
    if "image/png" in data:
        encoded = "".join(data["image/png"].split())
        return f'<img class="plot" alt="plot of the cell above" src="data:image/png;base64,{encoded}">'
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        table = re.sub(r' (?:border|style)="[^"]*"', "", table)
        return '<div class="output">' + re.sub(r"\n\s*", "", table) + "</div>"
    return f"```text {{ .output }}\n{data['text/plain'].rstrip()}\n```"


def command_line_page() -> str:
    """The help of `keras-ranking` and of each of its commands, as the program prints it on 100 columns."""
    os.environ["COLUMNS"] = "100"
    from keras_ranking.cli import build_parser

    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = [f"```text\n{parser.format_help().rstrip()}\n```"]
    for name, command in commands.choices.items():
        parts += [f"## {name}", f"```text\n{command.format_help().rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def math_font() -> Path:
    """STIX Two Math (SIL Open Font License), as the package ziamath brings it: browsers draw MathML badly without such a font."""
    found = importlib.util.find_spec("ziamath")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the site's formulas need the package ziamath: pip install 'keras-ranking[docs]'", name="ziamath")
    return Path(found.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "notebooks").mkdir(parents=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        (OUT / "notebooks" / f"{notebook.stem}.md").write_text(notebook_page(notebook), encoding="utf-8")
    shutil.copy(math_font(), ROOT / "docs" / "assets" / "math.ttf")
    (OUT / "command-line.md").write_text(command_line_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
