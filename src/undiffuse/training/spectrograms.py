"""The spectrograms of a data set of sounds, which a vocoder learns to make waveforms of."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from torch import Tensor

from undiffuse.conditions import Condition, Spectra
from undiffuse.conditions.condition import Rows
from undiffuse.data.sounds import SoundSet
from undiffuse.domains.log_mel import LogMel


@dataclass(frozen=True)
class Spectrograms:
    """Those of N rows, computed when they are asked for.

    Attributes:
        rows: int16 (N, L), which may lie on a disk.
        rate: in Hz.
    """

    rows: np.ndarray
    rate: int

    kind: ClassVar[str] = Spectra.kind

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    def __getitem__(self, rows: Rows) -> Spectra:
        """Those of these rows, in this order."""
        chosen = np.asarray(self.rows[rows.numpy() if isinstance(rows, Tensor) else rows])
        return Spectra.of(LogMel(chosen.shape[1:], self.rate).encode(chosen)[:, 0], self.rate)

    def facts(self) -> dict[str, Any]:
        """Those of `Spectra`."""
        return self[:1].facts()


def spectrograms(data: SoundSet) -> Condition:
    """`Spectrograms`, typed as a condition: training only takes rows of it, and its facts."""
    return cast(Condition, Spectrograms(data.images, data.rate))
