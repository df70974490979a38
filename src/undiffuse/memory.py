"""This machine's memory: its size, and a setting that lets the process reuse freed memory."""

import ctypes
import math
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
WHOLE = 2**31 - 1
LARGEST = 2**30


def total_memory() -> float:
    """Bytes of memory of this machine, infinite if unknown."""
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= getattr(os, "sysconf_names", {}).keys()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else math.inf


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory. By default, blocks of megabytes go back to the kernel at once, and each
    new one is faulted in page by page: a quarter of a training step's time with the preset `likelihood`.

    The process keeps its peak size. With another libc nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, WHOLE)
