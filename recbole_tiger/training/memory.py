"""Memory management of the C library."""

import ctypes
import sys

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

# Environment of a process that does not train in its main thread. glibc gives each thread its own heap of at most 64 MB, and
# returns larger tensors to the system regardless of other settings. A single heap for all threads keeps them.
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}


def keep_freed_memory():
    """Let the C library keep the memory that a training step frees, for the next step.

    By default it returns every large tensor to the system, which then clears the same pages again for the next step. This
    has no effect if the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # Older versions of glibc accept at most 32 MB; setting only the trim threshold would fix the other one at 128 KB.
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
