"""What a finished site must hold: links that lead somewhere, nothing loaded from a network, every public name once.

python tools/docs_site/checks.py [SITE]        # exit code 1 and one line a fault
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "keras_ranking"
ROOMS = ("data", "layers", "losses", "metrics", "models", "ops", "serving", "training")
# Attributes by which a page loads something, as against links that a reader follows.
LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """Anchors, links and loaded files of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)
            elif (tag, name) in LOADS and dict(attrs).get("rel") not in ("canonical", "prev", "next", "alternate"):
                self.loads.append(value)
            elif tag == "a" and name == "href":
                self.links.append(value)


def read(site: Path) -> dict[Path, Page]:
    """All pages of the site."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        pages[path] = page
    return pages


def faults_of_links(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Links and loaded files of the site that are not there, anchors included, and files loaded from elsewhere."""
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        where = path.relative_to(site)
        for target in page.loads + page.links:
            parts = urlsplit(target)
            if parts.scheme in ("data", "mailto", "javascript") or parts.scheme.startswith("http") or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    yield f"{where} loads {target} from a network"
                continue
            file = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                yield f"{where} links to {target}, which is not there"
            elif parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].anchors | {"__top"}:
                yield f"{where} links to {target}, but that page has no such anchor"


def faults_of_styles(site: Path) -> Iterator[str]:
    """Style sheets that load something from a network."""
    for path in site.rglob("*.css"):
        for target in re.findall(r"url\(\s*['\"]?(https?:[^'\")]+)", path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)} loads {target} from a network"


def public_names() -> list[str]:
    """'keras_ranking.layers.HistoryEncoder' for each public class and function, read without importing the package."""

    def exported(file: Path) -> list[str]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return [item.value for item in node.value.elts if isinstance(item, ast.Constant)]  # type: ignore[attr-defined]
        raise ValueError(f"{file} has no __all__")

    own = [f"keras_ranking.{name}" for name in exported(PACKAGE / "__init__.py") if name not in (*ROOMS, "__version__")]
    return own + [f"keras_ranking.{room}.{name}" for room in ROOMS for name in exported(PACKAGE / room / "__init__.py")]


def faults_of_reference(pages: dict[Path, Page], site: Path) -> Iterator[str]:
    """Public names without a place in the API reference, or with two."""
    found = Counter(anchor for path, page in pages.items() if "api" in path.relative_to(site).parts for anchor in page.anchors)
    for name in public_names():
        if found[name] != 1:
            yield f"{name} has {found[name]} places in the API reference, not one"


def main(site: Path) -> int:
    pages = read(site)
    faults = [*faults_of_links(site, pages), *faults_of_styles(site), *faults_of_reference(pages, site)]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(pages)} pages, {len(public_names())} public names, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").resolve()))
