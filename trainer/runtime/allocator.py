"""Settings of glibc's memory allocator for networks that compute on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # values of glibc's constants in malloc.h


def keep_freed_memory() -> None:
    """Keep freed memory for the next step. The operating system would zero the pages of memory that is returned to it.

    Zeroing took a seventh of the time of the demo's steps (LOG.md). With a C library other than glibc, this
    function does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
