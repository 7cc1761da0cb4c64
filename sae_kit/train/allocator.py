"""Keep freed memory in the process while training on a CPU.

glibc hands every block over 32 MB back to the kernel when it is freed, and each new one then costs
a page fault per 4 KB: with a training step's temporaries that is a sixth of the time. Here freed
blocks stay in the heap for the next step. A heap that is never trimmed gathers holes, though, by a
third in two thousand steps; so what is unused goes back now and then (`give_back_memory`).

Only glibc has these switches; elsewhere nothing happens.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Switch glibc's malloc, for the rest of this process, from returning big blocks to keeping
    them.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Return to the kernel the pages that nothing lies in; costs about as much as a step."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
