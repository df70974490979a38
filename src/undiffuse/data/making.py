"""Data sets that undiffuse draws itself, as many pictures of any size as are wanted."""

import json
from collections.abc import Callable

import numpy as np

from undiffuse.data import avatars
from undiffuse.data.avatar_captions import captions_of
from undiffuse.errors import UsageError


def make_avatars(n: int, size: int, seed: int, tick: Callable[[int, int], None] | None = None) -> dict[str, np.ndarray]:
    """Arrays for an .npz file of n avatars, which `undiffuse.data.load` reads with captions and attributes.

    Returns x_train and x_test, uint8 (N, size, size, 3); JSON of the attributes and captions of both as bytes,
    uint8 (N,). Raises UsageError without the extra `avatars`, and if there are too few pictures for two splits.
    """
    arrays = avatars.arrays_of(avatars.drawn(seed, n, size, tick))
    if not {"x_train", "x_test"} <= arrays.keys():
        raise UsageError(f"-n {n}: one of the splits, train and test, would have no picture: draw more")
    captions = captions_of(json.loads(arrays["attributes"].tobytes()), seed)
    return {**arrays, "captions": avatars.as_json(captions)}


MAKERS = {"avatars": make_avatars}
"""Name -> arrays of n pictures of a size from a seed."""
