"""Memory of a training process on a CPU: freed memory is kept for the next array."""

from __future__ import annotations

import ctypes

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_KEPT = 2**30
_STEP = 2**26  # the largest size of an arena in glibc


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for the next array, instead of returning it to the system.

    A training step makes and frees the same large arrays repeatedly. By default glibc returns many of them at once, and the system
    fills each page with zeros before it is used again: a third of a training step on a CPU with TensorFlow, a tenth with torch.
    The process then keeps its peak memory; arrays above 1 GiB are still returned. `keras-ranking train` calls this function; in a
    notebook, call it before training.

    Returns:
        Whether the settings were changed: only with the allocator of glibc, not on macOS, Windows or musl.

    Example:
        >>> import sys
        >>> kr.training.keep_freed_memory() or sys.platform != "linux"
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
