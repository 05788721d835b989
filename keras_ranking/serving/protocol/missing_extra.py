"""The error message of a missing package, with the extra to install."""

from __future__ import annotations


def missing_extra(who: str, error: ModuleNotFoundError, extra: str = "serving") -> str:
    """One line with the install command of the missing package."""
    return f"{who} needs the package '{error.name}', which is not installed: pip install keras-ranking[{extra}]"
