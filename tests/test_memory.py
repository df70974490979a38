"""Freed memory is kept."""

import platform

import numpy as np
import pytest

from undiffuse.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_large_blocks_are_not_faulted_in_anew() -> None:
    """Ten arrays of 32 MB, one after the other: by default each comes from the kernel, page by page."""
    resource = pytest.importorskip("resource")
    keep_freed_memory()
    np.ones(2**22).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**22).sum()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 50  # in pages of 4 kB they are 81,920
