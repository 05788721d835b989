"""Figures of matplotlib that a notebook shows without pyplot, and that need no display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

BLUE, RED, GREY = "#33539e", "#b3423a", "#9aa3b2"
COLORS = (BLUE, RED, "#3f8f5b", "#c07f1d", "#7a4f9a", "#4a8fa8", "#8a6d3b", "#5b6472")


def new_figure(width: float = 6.0, height: float = 3.4, extra: str = "plots") -> Any:
    """An empty figure, in inches.

    Args:
        width, height: in inches.
        extra: of this package, that the error of a missing matplotlib names.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"plots need matplotlib: pip install 'keras-ranking[{extra}]'", name="matplotlib") from error

    class Picture(Figure):
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=90)
            return file.getvalue()

    return Picture(figsize=(width, height), layout="constrained")


def by_run(values: Any) -> dict[str, Any]:
    """What several runs gave, by the name of the run; what is given for one run alone has the name ''."""
    return dict(values) if isinstance(values, Mapping) else {"": values}


def finish(axes: Any, runs: Sequence[str], **settings: Any) -> None:
    """Labels, faint grid lines, and a legend where there is more than one thing to name."""
    axes.set(**settings)
    axes.grid(True, color="#e5e8ef", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(runs):
        axes.legend(fontsize=8, frameon=False)
