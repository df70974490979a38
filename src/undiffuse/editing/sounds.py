"""What of a sound is made anew, for `undiffuse.editing.rows.edit`: a gap in time, high frequencies, noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.data.recordings import Recordings
from undiffuse.domains.log_mel import LogMel
from undiffuse.domains.sounds import Sounds
from undiffuse.editing.maps import Masked
from undiffuse.editing.restore import Restored, restore
from undiffuse.editing.rows import Join
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.model import Model
from undiffuse.names import cut, shown


@dataclass(frozen=True)
class Missing:
    """What is not known of some clips.

    repaint  the elements of x_0, bool (*axes) or (N, *axes), the axes being those of x_0 after its channels
    join     what `rows.edit` does with the result
    """

    repaint: np.ndarray
    join: Join


def missing_gap(domain: Sounds, gap: range) -> Missing:
    """The samples in `gap`; all others come back as they were."""
    return Missing(domain.reached(gap), partial(_rejoined, domain, gap=gap))


def missing_band(domain: Sounds, hertz: float) -> Missing:
    """Everything above `hertz`: bandwidth extension."""
    if not 0 < hertz < domain.rate / 2:
        raise UsageError(f"bandwidth:{hertz:g} must lie between 0 and {domain.rate / 2:g} Hz, half of the model's rate")
    repaint = domain.above(hertz)
    if repaint.all():
        raise UsageError(f"bandwidth:{hertz:g} leaves no band of the model: name a higher frequency")
    return Missing(repaint, partial(_rejoined, domain))


def missing_below_noise(domain: Sounds, clips: Recordings, piece: range | None = None) -> Missing:
    """What noise covers in the clips, as `LogMel.noisy` finds it; made anew, it is no louder than what was heard: the
    bounded imputation of Cooke, Green, Josifovski and Vizinho (2001), section 4."""
    if not isinstance(domain, LogMel):
        raise UsageError("denoise is for models of log-mel spectrograms or of samples, and this one is of the MDCT")
    return Missing(domain.noisy(clips.rows, clips.lengths, piece), partial(_bounded, domain))


def missing(spec: str, domain: Sounds, clips: Recordings) -> Missing:
    """What `spec` says: "bandwidth:HZ", "denoise" or "denoise:START,END" with seconds of pure noise.

    Raises UsageError for another name, an argument that cannot be, and what the domain cannot.
    """
    name, _, argument = spec.partition(":")
    if name == "bandwidth":
        try:
            hertz = float(argument)
        except ValueError:
            raise UsageError(f"bandwidth takes a frequency in Hz, as bandwidth:3400, not {shown(argument)}") from None
        return missing_band(domain, hertz)
    if name == "denoise":
        piece = piece_of(spec, argument, domain) if argument else None
        return missing_below_noise(domain, clips, piece)
    raise UsageError(f"no restoration of sounds is called {cut(shown(name))}: choose denoise or bandwidth:HZ")


def denoise(
    model: Model,
    clips: Recordings,
    *,
    noise: float,
    method: str = "mmps",
    recipe: Recipe | None = None,
    n: int = 1,
    condition: Condition | None = None,
    tick: Callable[[int], None] | None = None,
) -> Restored:
    """n samples of p(x_0 | y), y = x_0 + n being the one recording and x_0 samples: `restore` with the identity.

    `noise`: the standard deviation of n in the file, full scale being 1. Raises UsageError for one that is not above 0,
    and as `restore`.
    """
    if not (noise > 0 and math.isfinite(noise)):
        raise UsageError(f"--noise {noise:g}: say how loud it is, a standard deviation above 0, full scale being 1")
    domain = model.domain
    everything = Masked(domain.shape, torch.ones(domain.shape[1:], dtype=torch.bool))
    y = everything.forward(domain.encode(clips.rows).double())
    level = noise * float(clips.gains[0])
    return restore(
        model,
        everything,
        y,
        noise=level,
        method=method,
        recipe=recipe,
        numbers=range(n),
        condition=condition,
        tick=tick,
    )


def piece_of(option: str, text: str, domain: Sounds) -> range:
    """ "START,END" in seconds, either left out at an end -> samples. `option` is for errors, UsageError."""
    begin, comma, end = (part.strip() for part in text.partition(","))
    try:
        start, stop = float(begin or 0), float(end or domain.seconds)
        ends = round(start * domain.rate), round(stop * domain.rate)
    except (ValueError, OverflowError):
        ends = (0, 0)
    if not comma or not 0 <= ends[0] < ends[1] <= domain.stored[0]:
        raise UsageError(
            f"{option} {shown(text)}: write START,END in seconds, from 0 to {domain.seconds:g} in this model, such as "
            "0.2,0.3; to the end as 0.2, and from the beginning as ,0.3"
        )
    return range(*ends)


def _rejoined(
    domain: Sounds, x0: Tensor, rows: np.ndarray, repaint: np.ndarray, gap: range | None = None
) -> np.ndarray:
    return domain.rejoin(x0, rows, repaint, gap)


def _bounded(domain: Sounds, x0: Tensor, rows: np.ndarray, repaint: np.ndarray) -> np.ndarray:
    return domain.rejoin(torch.minimum(x0.cpu(), domain.encode(rows)), rows, repaint)
