"""Draws the avatars that come with the package: python tools/build_avatars.py (needs the extra avatars)."""

import numpy as np

from undiffuse.data.avatars import arrays_of, drawn, pairs
from undiffuse.data.builtin import AVATARS

COUNT, SIZE, PAIRS = 12_000, 32, 400

if __name__ == "__main__":
    np.savez_compressed(AVATARS, **arrays_of(drawn(0, COUNT, SIZE)))
    np.savez_compressed(AVATARS.with_name("avatar-pairs.npz"), **pairs(1, PAIRS, SIZE))
