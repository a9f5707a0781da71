"""Memory that a process keeps."""

import ctypes
import sys

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

# Of the environment of a process that trains in another thread than its main one. glibc gives a thread a heap of its own,
# which takes no more than 64 MB; larger tensors it returns to the system whatever else is set. One heap for all keeps them.
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}


def keep_freed_memory():
    """Let the C library keep what a step of training frees for the next one.

    By default it returns every large tensor to the system, which then hands out and clears the same pages again at the next
    step. Where the C library is not glibc there is nothing to set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # An older glibc takes no more than 32 MB, and a trim threshold alone would freeze the other at 128 KB.
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
