"""Sounds as the signed root of their MDCT, an exact representation of every row."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from undiffuse.domains.sounds import FULL_SCALE, Sounds, blocks_of, steps_of, waveforms
from undiffuse.names import shown

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MDCT(Sounds):
    """x_0 is the signed root of the MDCT, (1, M, L / M): see `undiffuse.sound.mdct` and `undiffuse.sound.companding`.

    x_0 has no bound: of speech, 7 % of the elements are beyond 1, and clipped to it there is 4 dB of signal to noise
    left.
    `scale` has one number for each of the M bands (`band_scales`), the amplitude of 1 being full scale. Raises
    ValueError for a scale that is not positive and finite, and for a number of bands that is odd or does not divide L.
    """

    scale: tuple[float, ...]
    bounded = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.scale, tuple | list) or not all(
            type(scale) is float and 0 < scale < math.inf for scale in self.scale
        ):
            raise ValueError(f"scale = {shown(self.scale)}: must be positive finite numbers with a point, one per band")
        object.__setattr__(self, "scale", tuple(self.scale))  # JSON has lists
        bands = len(self.scale)
        if not bands or bands % 2 or self.stored[0] % bands:
            raise ValueError(f"{bands} bands: must be an even number that divides {self.stored[0]} samples")

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, M, L / M): low bands first."""
        return 1, len(self.scale), self.stored[0] // len(self.scale)

    def encode(self, rows: np.ndarray) -> "Tensor":
        """int16 (N, L), or floats in the same steps -> float32 (N, 1, M, L / M), about 0.5 in root mean square."""
        import torch

        from undiffuse.sound.companding import compress
        from undiffuse.sound.mdct import mdct

        scale = self._scale()
        parts = [compress(mdct(waveforms(part), len(scale)), scale).float() for part in blocks_of(rows)]
        return torch.cat(parts)[:, None] if parts else torch.empty(0, *self.shape)

    def decode(self, x0: "Tensor") -> np.ndarray:
        """float (N, 1, M, L / M) -> int16 (N, L), rounded to the nearest step and saturated.

        float32 keeps u to a relative 2^-24, so a coefficient to 2^-23. A sample is a combination, with weights of norm
        1, of the coefficients of two blocks, whose norm is at most 32768 sqrt(3 M): it is wrong by at most
        0.0039 sqrt(3 M) steps. That is less than 1/2 for M up to 5,000, so every row comes back exactly.
        """
        from undiffuse.sound.companding import expand
        from undiffuse.sound.mdct import inverse_mdct

        return steps_of(inverse_mdct(expand(x0[:, 0].cpu().double(), self._scale())))

    def reached(self, gap: range) -> np.ndarray:
        """Every band of the blocks whose window reaches into `gap`: M / 2 samples beyond a block on either side."""
        bands, blocks = self.shape[1:]
        begin = bands * np.arange(blocks) - bands // 2
        return np.tile((begin < gap.stop) & (begin + 2 * bands > gap.start), (bands, 1))

    def above(self, hertz: float) -> np.ndarray:
        """The bands that do not end below `hertz`, bool (M, L / M)."""
        bands, blocks = self.shape[1:]
        ends = self.rate / (2 * bands) * (np.arange(bands) + 1)
        return np.tile(ends[:, None] > hertz, (1, blocks))

    def log_volume(self, x0: "Tensor") -> "Tensor":
        """ln |d row / d x_0| in nats, the row in its steps: as `Waves.log_volume`, and used as that is.

        row = 32768 D^T c with an orthogonal D, so |det| = 32768^L, and c = s sign(u) u^2 in each place, so
        dc / du = 2 s |u|: together L ln 32768 + sum ln(2 s |u|). It is minus infinity where a coefficient is exactly 0,
        which digital silence has and dequantised rows almost never do.
        """
        from undiffuse.sound.companding import log_slope

        slopes = log_slope(x0[:, 0].cpu().double(), self._scale()).flatten(1).sum(1)
        return slopes + self.stored[0] * math.log(FULL_SCALE)

    def _scale(self) -> "Tensor":
        import torch

        return torch.tensor(self.scale, dtype=torch.float64)


def band_scales(rows: np.ndarray, bands: int = 64) -> tuple[float, ...]:
    """The scale of each MDCT band of rows int16 (N, L), N > 0: with it x_0 has a root mean square of 0.5 in each."""
    from undiffuse.sound.companding import scales
    from undiffuse.sound.mdct import mdct

    sums = [mdct(waveforms(part), bands).abs().mean(2).sum(0) for part in blocks_of(rows)]
    return scales(sum(sums[1:], sums[0]) / len(rows))
