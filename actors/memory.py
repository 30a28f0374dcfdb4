"""How this process's allocator treats large blocks."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 2**30  # bytes of a block that is kept; more is not taken


def keep_freed_blocks() -> bool:
    """Let malloc keep what is freed, for the next block of that size, instead of giving it back to the system.

    Weights arrive in messages of megabytes, and on the CPU vLLM makes every parameter anew at an update. Memory from
    the system must be mapped and cleared page by page, which takes longer than the copy into it: with this an update
    on the CPU takes half the time. Only glibc knows the call; returns whether it was taken.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
