"""Which images are for training and which are held out."""

import numpy as np

from undiffuse.errors import UsageError

SPLITS = ("train", "test", "all")
ONE_IN = 10


def held_out(count: int, labels: np.ndarray | None = None) -> np.ndarray:
    """The test split of a source without its own, bool (count,): one image in ten, always the same ones.

    It is every tenth item of a fixed permutation of the positions, and so follows neither file nor class order. Fewer
    than ten images have no test split; the training split is never empty. A class of `labels`, int64 (count,), whose
    images would all be held out keeps its first one for training.
    """
    # RandomState is frozen by NumPy's policy (NEP 19); the newer Generator may change its stream between versions.
    order = np.random.RandomState(0).permutation(count)
    test = np.zeros(count, dtype=bool)
    test[order[ONE_IN - 1 :: ONE_IN]] = True
    if labels is not None:
        known, first = np.unique(labels, return_index=True)
        test[first[~np.isin(known, labels[~test])]] = False
    return test


def select(test: np.ndarray, split: str) -> np.ndarray:
    """Positions of `split`, int64, ascending; train and test are disjoint and together "all".

    Raises UsageError if the split is empty.
    """
    if split == "all":
        return np.arange(len(test))
    chosen = np.flatnonzero(test if split == "test" else ~test)
    if len(chosen) == 0:
        raise UsageError(
            f"no {split} split: {len(test)} images, of which {np.count_nonzero(test)} are held out for testing "
            f"(one in {ONE_IN} where the source has no split of its own). Use split 'all'."
        )
    return chosen
