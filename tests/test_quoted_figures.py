"""Figures that other pages quote from the page of four logs are those of that page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.one_backend]
WORTH = ROOT / "docs" / "results" / "worth.md"
EBNERD, MOVIELENS, RETAIL, KUAIRAND = "EB-NeRD", "MovieLens-1M", "Online Retail", "KuaiRand-Pure"
FOUR = ("impression AUC", "AUC", "NDCG@10", "log loss")
ORDER_LOSS = ("impression AUC", "log loss")
# (page, start of the line, log, model, columns, in the order of the line), of models that all members trained
QUOTED = [
    ("README.md", "| **LiGR**, with [counts that know the list", EBNERD, "LiGR, `fold_in`", FOUR),
    ("README.md", "| **LiGR**, the same columns, with [a forest", EBNERD, "LiGR, `fold_in` with forest", FOUR),
    ("README.md", "| **CADET**, the same columns", EBNERD, "CADET, `fold_in`", FOUR),
    ("README.md", "| LightGBM, the same columns", EBNERD, "LightGBM binary, `fold_in`", FOUR),
    ("docs/guides/choose.md", "| LightGBM, binary", EBNERD, "LightGBM binary, `fold_in`", (*ORDER_LOSS, "minutes")),
    ("docs/guides/choose.md", "| LiGR | 0.7965", EBNERD, "LiGR, `fold_in`", (*ORDER_LOSS, "minutes")),
    ("docs/guides/choose.md", "| LiGR with forest", EBNERD, "LiGR, `fold_in` with forest", (*ORDER_LOSS, "minutes")),
    ("docs/guides/choose.md", "| CADET | 0.7944", EBNERD, "CADET, `fold_in`", (*ORDER_LOSS, "minutes")),
]
PAIRS = {  # of the guide on forests: the network, the forest and the pair side by side
    "| EB-NeRD: ": (EBNERD, ("LiGR, `fold_in`", "LightGBM binary, `fold_in`", "LiGR, `fold_in` with forest"), ORDER_LOSS),
    "| Online Retail: ": (
        RETAIL,
        ("LiGR, `fold_in`", "LightGBM binary, `fold_in`", "LiGR, `fold_in` with forest"),
        ("impression AUC", "AUC", "log loss"),
    ),
    "| MovieLens-1M, personal": (
        MOVIELENS,
        ("CADET, `personal`", "LightGBM binary, `personal`", "CADET, `personal` with forest"),
        ("AUC", "log loss"),
    ),
    "| KuaiRand-Pure: ": (
        KUAIRAND,
        ("LiRank, `fold_in`", "LightGBM binary, `fold_in`", "LiRank, `fold_in` with forest"),
        ("AUC", "log loss"),
    ),
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def measured(log: str, model: str) -> dict[str, str]:
    """The figures of a model that was trained on all members; a model that compared fewer settings is found too."""
    part = WORTH.read_text(encoding="utf-8").split(f"\n## {log}")[1].split("\n## ")[0].split("all members trained on (`validation`)")[1]
    rows = [cells(line) for line in part.split("\n\n")[1].splitlines()]
    found = [row for row in rows if re.sub(r", (best of \d+|one) settings?$", "", row[0].strip("*")) == model]
    assert len(found) == 1, f"{model}: {len(found)} lines on {log}"
    return dict(zip(rows[0], found[0], strict=True))


def line_of(page: str, start: str) -> str:
    found = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith(start)]
    assert len(found) == 1, f"{page} has {len(found)} lines that start with {start!r}"
    return found[0]


def quoted(line: str, first: int = 1) -> list[str]:
    """The figures of a line, without intervals and bold face."""
    return re.findall(r"(?<![\d.±])\d+\.\d+", re.sub(r"± [\d.]+", "", "|".join(cells(line)[first:])))


def of(figures: dict[str, str], columns: tuple[str, ...]) -> list[str]:
    return [figures[column].split(" ±")[0] for column in columns]


@pytest.mark.parametrize(("page", "start", "log", "model", "columns"), QUOTED)
def test_a_line_quotes_what_was_measured(page: str, start: str, log: str, model: str, columns: tuple[str, ...]) -> None:
    line, figures = line_of(page, start), measured(log, model)
    assert quoted(line) == of(figures, columns)
    for shown, column in zip(re.findall(r"[\d.]+ ± [\d.]+", line), columns, strict=False):
        assert shown == figures[column]


@pytest.mark.parametrize("start", PAIRS)
def test_networks_forests_and_pairs(start: str) -> None:
    log, models, columns = PAIRS[start]
    expected = [figure for model in models for figure in of(measured(log, model), columns)]
    assert quoted(line_of("docs/guides/forests.md", start)) == expected


def test_control_another_figure_is_seen() -> None:
    line = line_of("README.md", "| LightGBM, the same columns").replace("0.7930", "0.7893")
    assert quoted(line) != of(measured(EBNERD, "LightGBM binary, `fold_in`"), FOUR)
