"""What glibc's allocator does with activations of a network that computes on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Have freed memory kept for the next step, not given back to the kernel, which would zero it page by page.

    That takes a seventh of the time of the demo's steps (LOG.md). Other C libraries keep their ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
