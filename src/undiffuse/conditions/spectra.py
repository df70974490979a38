"""Log-mel spectrograms: each sample is a sound with a given one, or with any (unconditional)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from undiffuse.conditions.condition import Encoders, Rows
from undiffuse.devices import sent
from undiffuse.sound import MEL_BANDS

SILENCE = -1.0
"""The least level of a spectrogram (`undiffuse.sound.mel.log_mel`)."""


@dataclass(frozen=True)
class Spectra:
    """The log-mel spectrograms of B sounds; a `Condition`.

    Attributes:
        levels: float32 (B, MEL_BANDS, K), as `undiffuse.sound.mel.log_mel` makes them.
        present: bool (B,); false for a sound with any spectrogram, whose levels are those of silence.
        rate: of the sounds, in Hz.

    Raises ValueError for another shape.
    """

    levels: Tensor
    present: Tensor
    rate: int

    kind: ClassVar[str] = "spectra"

    def __post_init__(self) -> None:
        if self.levels.ndim != 3 or self.levels.shape[1] != MEL_BANDS or self.present.shape != self.levels.shape[:1]:
            raise ValueError(
                f"spectra are (B, {MEL_BANDS}, K) with a flag each, not {tuple(self.levels.shape)} with "
                f"{tuple(self.present.shape)}"
            )

    @classmethod
    def of(cls, levels: Tensor, rate: int) -> "Spectra":
        """The condition of as many sounds as there are spectrograms (B, MEL_BANDS, K)."""
        return cls(levels.float(), torch.ones(len(levels), dtype=torch.bool, device=levels.device), rate)

    def __len__(self) -> int:
        """B."""
        return len(self.present)

    def __getitem__(self, rows: Rows) -> "Spectra":
        """The spectrograms of these rows, in this order."""
        return Spectra(self.levels[rows], self.present[rows], self.rate)

    def joined(self, *others: "Spectra") -> "Spectra":
        """These spectrograms, then those of each of `others`. Raises ValueError for those of another rate."""
        if any(other.rate != self.rate for other in others):
            raise ValueError(f"spectra at {self.rate} Hz cannot be joined with spectra at others")
        both = (self, *others)
        return Spectra(torch.cat([one.levels for one in both]), torch.cat([one.present for one in both]), self.rate)

    def to(self, device: torch.device | str) -> "Spectra":
        """The same on `device`, copied asynchronously."""
        return Spectra(sent(self.levels, device), sent(self.present, device), self.rate)

    def dropped(self, where: Tensor | None = None) -> "Spectra":
        """The same, with the rows of any spectrogram where `where`, bool (B,), is true; None: all of them."""
        gone = torch.ones_like(self.present) if where is None else where.to(self.present.device)
        return Spectra(self.levels.masked_fill(gone[:, None, None], SILENCE), self.present & ~gone, self.rate)

    def facts(self) -> dict[str, Any]:
        """`bands`, `frames` (K) and `rate` in Hz."""
        return {"bands": self.levels.shape[1], "frames": self.levels.shape[2], "rate": self.rate}

    @classmethod
    def encoders(cls, facts: dict[str, Any]) -> Encoders:
        """Raises ValueError: a spectrogram is not one vector. The network "vocoder" takes it as it is."""
        raise ValueError("spectrograms are for network.kind=vocoder")

    @classmethod
    def for_samples(cls, facts: dict[str, Any], numbers: np.ndarray) -> "Spectra":
        """Silence, whatever the number: a model keeps no spectrogram of its data, and a sound for one is what it makes.

        Raises KeyError, TypeError or ValueError for invalid facts.
        """
        levels = torch.full((len(numbers), facts["bands"], facts["frames"]), SILENCE)
        return cls.of(levels, facts["rate"])
