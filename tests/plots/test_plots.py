"""The points that each figure draws, against numpy; errors; and that matplotlib is named where it is missing."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.plots import page

pytestmark = pytest.mark.one_backend
RANDOM = np.random.default_rng(0)
CHANCE = RANDOM.random(400).round(2) * 0.6 + 0.02
LABEL = (RANDOM.random(400) < CHANCE).astype(int)


def test_reliability_draws_the_rate_of_each_bin() -> None:
    figure = kr.plots.reliability(LABEL, {"a": CHANCE, "b": 1 - CHANCE}, bins=4)
    line = figure.axes[0].containers[0].lines[0]
    rows = np.array_split(np.argsort(CHANCE, kind="stable"), 4)
    np.testing.assert_allclose(line.get_xdata(), [CHANCE[one].mean() for one in rows])
    np.testing.assert_allclose(line.get_ydata(), [LABEL[one].mean() for one in rows])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_scores_are_shares_of_their_rows() -> None:
    axes = kr.plots.score_distribution(LABEL, CHANCE, bins=12).axes[0]
    bars = [sum(bar.get_height() for bar in group) for group in axes.containers]
    np.testing.assert_allclose(bars, [1, 1])


def test_the_position_curve_is_by_position_and_leaves_out_rows_without_one() -> None:
    position = RANDOM.integers(0, 6, 400)
    axes = kr.plots.position_curve(LABEL, position, CHANCE, last=4).axes[0]
    at = np.minimum(position, 4)
    np.testing.assert_allclose(axes.containers[0].lines[0].get_ydata(), [LABEL[at == k].mean() for k in (1, 2, 3, 4)])
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), [CHANCE[at == k].mean() for k in (1, 2, 3, 4)])
    with pytest.raises(ValueError, match="must hold a position"):
        kr.plots.position_curve(LABEL, np.zeros(400))


def test_intervals_are_drawn_and_no_point_is_outside() -> None:
    values = np.array([[0.7, 0.69, 0.71], [0.71, 0.7, 0.72], [0.72, 0.71, 0.73], [5.0, -50.0, 60.0]])
    axes = kr.plots.intervals(["a", "b", "c", "wide"], values, reference=0.5).axes[0]
    low, high = axes.get_xlim()
    assert low < 0.5 and 5.0 < high < 10.0, "the wide interval is cut, its point is not"
    # What moves most among many that hardly move, as in an importance, is seen with its whole interval.
    few = [[0.12, 0.08, 0.16], [0.0, -0.004, 0.004], [0.0, -0.002, 0.002], [-0.006, -0.012, 0.001], [0.001, -0.003, 0.004]]
    low, high = kr.plots.intervals(list("abcde"), few, reference=0.0).axes[0].get_xlim()
    assert low < -0.012 and 0.16 < high < 0.2
    low, high = kr.plots.intervals(["a", "b"], [[np.nan] * 3, [0.5, np.nan, np.nan]]).axes[0].get_xlim()
    assert low < 0.5 < high
    with pytest.raises(ValueError, match=r"`values` must have shape \(1, 3\)"):
        kr.plots.intervals(["a"], values)


def test_attention_is_relative_to_equal_weights() -> None:
    """Equal weights are 1 at every age; all weight on the newest of four events is 4 there, and 0 elsewhere."""
    ages = np.array([[7200, 3600, 600, 60], [7200, 3600, 600, 60]])
    equal = kr.plots.attention_over_time(np.full((2, 4), 0.2), ages).axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(equal, 1.0)
    newest = kr.plots.attention_over_time([[0, 0, 0, 0.5]] * 2, ages).axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(newest, [4.0, 0, 0, 0])
    part = kr.plots.attention_over_time([[0.5, 0.5], [0.5, 0.5]], [[60, 30], [0, 0]], lengths=[2, 0])
    assert len(part.axes[1].collections) == 1, "a request without events is not drawn"
    with pytest.raises(ValueError, match="one shape"):
        kr.plots.attention_over_time([[1.0]], [[1.0, 2.0]])


def test_stability_index_is_that_of_its_formula() -> None:
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])
    assert kr.plots.stability_index(p, q) == pytest.approx(0.3 * np.log(2.5) + 0.3 * np.log(2.5), rel=1e-12)
    assert kr.plots.stability_index(p, p) == 0.0 and np.isfinite(kr.plots.stability_index([1.0, 0.0], [0.0, 1.0]))


def test_columns_that_moved_are_red() -> None:
    axes = kr.plots.column_shares({"a": (["x", "y"], [0.5, 0.5], [0.1, 0.9]), "b": (["x", "y"], [0.5, 0.5], [0.5, 0.5])}).axes
    assert [one.title.get_color() for one in axes[:2]] == ["#b3423a", "black"]
    with pytest.raises(ValueError, match="at least one column"):
        kr.plots.column_shares({})


def test_curves_have_training_and_validation_in_one_panel() -> None:
    figure = kr.plots.training_curves({"one": {"loss": [3.0, 2.0], "val_loss": [3.0, 2.5]}, "two": {"loss": [4.0], "val_auc": [0.5]}})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "auc"] and len(figure.axes[0].lines) == 3
    with pytest.raises(ValueError, match="`names` must be among"):
        kr.plots.training_curves({"loss": [1.0]}, names=["auc"])


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras-ranking\[plots\]'"):
        kr.plots.reliability([0, 1], [0.2, 0.7])


class Tags(HTMLParser):
    """Counts tags, and notes those that are closed in another order than they were opened."""

    void = frozenset({"meta", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.void:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href") and not str(value).startswith("#")]

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href") and not str(value).startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def checked(text: str) -> Tags:
    """The page's tags: all closed, nothing loaded from elsewhere."""
    tags = Tags()
    tags.feed(text)
    assert tags.wrong == [] and tags.open == [] and tags.loaded == []
    return tags


def test_a_page_escapes_what_it_is_given_and_loads_nothing() -> None:
    figure = page.figure_part(kr.plots.reliability([0, 1], [0.2, 0.7]), 'a "<b>" & c')
    body = [page.title("<script>"), page.section("A & b", [page.table(["x", "y"], [["<i>", "1"]], words=[1]), figure])]
    text = page.page("<t>", [page.contents(["A & b"]), *body, page.paragraph("1 < 2")])
    checked(text)
    assert "<script>" not in text and "<i>" not in text and 'href="#a-b"' in text and 'id="a-b"' in text and "1 &lt; 2" in text
    with pytest.raises(AssertionError):
        checked(text.replace("</table>", ""))
    with pytest.raises(AssertionError):
        checked(text.replace("<h2>", '<img src="https://example.com/a.png"><h2>'))
