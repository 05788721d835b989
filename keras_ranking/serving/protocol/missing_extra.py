"""The error of a package that is not installed: one line that names the extra."""

from __future__ import annotations


def missing_extra(who: str, error: ModuleNotFoundError, extra: str = "serving") -> str:
    """The one line that says which install command brings the missing package."""
    return f"{who} needs the package '{error.name}', which is not installed: pip install keras-ranking[{extra}]"
