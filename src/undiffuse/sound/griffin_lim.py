"""Fast Griffin-Lim: a waveform for magnitudes without phases (Perraudin, Balazs and Sondergaard 2013)."""

from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.sound.stft import inverse_stft, stft


def griffin_lim(
    magnitude: Tensor,
    hop: int,
    steps: int = 32,
    momentum: float = 0.99,
    *,
    initial: Tensor | None = None,
    impose: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Waveforms (B, K hop) whose spectra have magnitudes near `magnitude` (B, F, K), and how near (B,).

    Nothing is random: the first phases are 0 about the middle of each frame. On speech, phases that advance with the
    frequency of the bin, or of the nearest peak (Prusa, Balazs and Sondergaard 2017), end no nearer after 32 steps.
    The second answer is the spectral convergence (`convergence`) of each waveform.

    Args:
        initial: spectra, complex like `magnitude`, whose phases to begin with where they are not 0.
        impose: brings waveforms (B, K hop) to what is known of them, in every step but the end, so that the phases
            become those that continue it. A click that it made would stay: `undiffuse.sound.joining.joined` makes none.
    """
    tiny = torch.finfo(magnitude.dtype).tiny
    middle = 1 - 2 * (torch.arange(magnitude.shape[1], device=magnitude.device) % 2)  # e^(i pi f): half a frame later
    spectra = torch.complex(magnitude * middle[:, None], torch.zeros_like(magnitude))
    if initial is not None:
        size = initial.abs()
        spectra = torch.where(size > 0, initial * (magnitude / size.clamp(min=tiny)), spectra)
    before = spectra
    for _ in range(steps):  # algorithm 1: both projections, then momentum
        x = inverse_stft(spectra, hop)
        consistent = stft(x if impose is None else impose(x), hop)
        ahead = consistent + momentum * (consistent - before)
        spectra, before = ahead * (magnitude / ahead.abs().clamp(min=tiny)), consistent
    x = inverse_stft(spectra, hop)
    return x, convergence(x, magnitude, hop)


def convergence(x: Tensor, magnitude: Tensor, hop: int) -> Tensor:
    """||abs(stft x) - magnitude|| / ||magnitude|| for each of the clips (B, L), (B,); 0 for silence that is silent."""
    error, size = (part.flatten(1).norm(dim=1) for part in (stft(x, hop).abs() - magnitude, magnitude))
    return error / size.clamp(min=torch.finfo(size.dtype).tiny)
