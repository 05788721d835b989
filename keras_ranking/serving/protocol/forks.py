"""What a forked process must not share with its parent: open connections, and locks that another thread of the parent may hold."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    """An object with connections or locks."""

    def after_fork(self) -> None:
        """Replace them; called in the child, before any other code runs there."""


_living: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_after_fork(owner: Renewable) -> None:
    """Call `owner.after_fork()` in each process that is forked while `owner` exists."""
    _living.add(owner)


def _renew() -> None:
    for owner in list(_living):
        owner.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew)
