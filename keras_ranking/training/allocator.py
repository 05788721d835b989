"""What a training on a CPU does with memory that it has freed."""

from __future__ import annotations

import ctypes

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_KEPT = 2**30
_STEP = 2**26  # as large as an arena of glibc's may grow


def keep_freed_memory() -> bool:
    """Have this process keep memory that it frees, for the next array, instead of giving it back to the system.

    A training step makes and frees the same large arrays again and again. By default glibc gives many of them back at once, and the
    system fills each page with zeros before it lends it out anew: on TensorFlow that was a third of a training step on a CPU, on torch
    a tenth. The process then holds as much memory as it has once needed; arrays above 1 GiB still go back. `keras-ranking train` does
    this; in a notebook call it before training.

    Returns:
        Whether it was done: with an allocator other than glibc's (macOS, Windows, musl) nothing is changed.

    Example:
        >>> import sys
        >>> keep_freed_memory() or sys.platform != "linux"
        True
    """
    try:
        process = ctypes.CDLL(None)
    except TypeError:  # Windows has no such handle
        return False
    if not (hasattr(process, "gnu_get_libc_version") and hasattr(process, "mallopt")):
        return False
    settings = {_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: _STEP}
    taken = [process.mallopt(name, value) for name, value in settings.items()]
    return all(taken)
