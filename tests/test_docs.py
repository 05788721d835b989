"""Sources of the documentation: public names on one API page each, pages in the navigation, links that lead somewhere."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.public_names import public_objects

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "saved_models/README.md", "tools/tf_serving/README.md")]


def names_of(pages: list[Path]) -> list[str]:
    """What the `:::` lines of the pages name."""
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)]


def without_code(text: str) -> str:
    """Markdown without its code, in which brackets and parentheses are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def broken_links(page: Path, text: str) -> list[str]:
    """Links to files that are not there."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    files = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    return [file for file in files if file and not (page.parent / file).exists()]


def anchors(text: str) -> set[str]:
    """Anchors that headings make."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_every_public_name_is_on_one_api_page() -> None:
    found = Counter(names_of(sorted((DOCS / "api").rglob("*.md"))))
    wanted = {name.replace("kr.", "keras_ranking.", 1) for name, _ in public_objects()}
    assert {name: count for name, count in found.items() if count > 1} == {}
    assert sorted(wanted - set(found)) == [], "public names without a place in docs/api"
    assert sorted(set(found) - wanted) == [], "names in docs/api that are not public"


def test_no_other_page_documents_names() -> None:
    assert names_of([page for page in PAGES if "api" not in page.relative_to(DOCS).parts]) == []


def test_navigation_holds_every_page() -> None:
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"(\S+\.md)$", configuration.partition("\nnav:\n")[2], re.MULTILINE)
    assert sorted(listed) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_headings(page: Path) -> None:
    missing = []
    for file, anchor in re.findall(r"\]\(([^)\s:#]*)#([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        target = (page.parent / file).resolve() if file else page
        if anchor not in anchors(target.read_text(encoding="utf-8")):
            missing.append(f"{file}#{anchor}")
    assert missing == []


def test_files_that_pages_include_are_there_or_made() -> None:
    made = {"build/docs/command-line.md"} | {f"build/docs/notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    included = [name for page in PAGES for name in re.findall(r'^--8<-- "(.+)"$', page.read_text(encoding="utf-8"), re.MULTILINE)]
    assert made <= set(included), "a notebook without a page"
    assert [name for name in included if name not in made and not (ROOT / name).exists()] == []


def test_pictures_are_used() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES) + (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    unused = [path.name for path in DOCS.rglob("*") if path.suffix in (".png", ".svg") and path.name not in text]
    assert unused == []


def test_control_faults_are_seen() -> None:
    page = DOCS / "index.md"
    assert broken_links(page, "[a](guides/nowhere.md) `[b](c.md)` [d](https://example.org)") == ["guides/nowhere.md"]
    assert anchors("## What holds, and why\n```\n# no heading\n```\n") == {"what-holds-and-why"}


RUN = [page for page in PAGES if "```python\nimport" in page.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.quickest
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in one namespace. A fragment that cannot run is fenced as `py`."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)  # noqa: S102
