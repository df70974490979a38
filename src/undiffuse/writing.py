"""Texts from a model of tokens: written, continued, filled in, edited; each a pure function of (model, recipe, number).

Under absorbing noise a sampler sees the free positions alone; what is given, and masks to the end of the window, are
what the network reads beside them. So any tokens can be known, and the law of the others is as exact as the sampler.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.data.tokens import Tokenizer, tokenizer_of
from undiffuse.editing.known import holding
from undiffuse.errors import UsageError
from undiffuse.model import Model
from undiffuse.process import Categorical, CategoricalProcess, Time
from undiffuse.randomness import Draw, Purpose, keyed_draws
from undiffuse.registry import GRIDS, TOKEN_SAMPLERS
from undiffuse.sampling import State, make_grid, trajectory
from undiffuse.sampling.remembered import Remembered
from undiffuse.token_denoiser import TokenDenoiser

BLANK = "_"
"""In a text to be filled in, stands for one token."""
BETWEEN = "\n\n* * *\n\n"
"""Between texts in one file."""
BATCH = 16
"""Texts that the commands write at once."""
Tick = Callable[[int], None]
Denoise = Callable[[Tensor, Time], Categorical]


@dataclass(frozen=True)
class Writing:
    """How to write.

    Attributes:
        sampler: a name in TOKEN_SAMPLERS; "auto": first-hitting where tokens are masked and `steps` is None, else
            ancestral.
        steps: N, for each window or span; None: as many as there are tokens to write in it.
        grid: a name in GRIDS; None: the sampler's.
        seed: of all randomness.
    """

    sampler: str = "auto"
    steps: int | None = None
    grid: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, registry in ((self.sampler, TOKEN_SAMPLERS), (self.grid or "trailing", GRIDS)):
            if name != "auto":
                registry.check(name)
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed = {self.seed} must lie in 0 .. 2^32 - 1")

    def named(self, process: CategoricalProcess) -> str:
        """The sampler's name, decided."""
        if self.sampler != "auto":
            return self.sampler
        return "first-hitting" if process.mask is not None and self.steps is None else "ancestral"

    def times(self, process: CategoricalProcess, count: int, start: float = 1.0) -> Tensor:
        """The times to visit for `count` tokens, from `start`."""
        name = self.named(process)
        steps = 1 if name == "first-hitting" and self.steps is None else self.steps or count
        try:
            return start * make_grid(self.grid or TOKEN_SAMPLERS[name].grid, process.schedule, steps)
        except ValueError as error:
            raise UsageError(str(error)) from None


def texts_only(model: Model) -> Tokenizer:
    """The tokenizer of a model of texts. Raises UsageError for any other model."""
    if model.data.tokens is None:
        raise UsageError(f"{model.name} is not a model of texts")
    return tokenizer_of(model.data.tokens)


def write(
    model: Model,
    writing: Writing,
    numbers: Sequence[int],
    prompt: np.ndarray,
    length: int,
    condition: Condition | None = None,
    allowed: np.ndarray | None = None,
    tick: Tick | None = None,
) -> np.ndarray:
    """The texts `numbers`, of `length` tokens that begin with `prompt`: int64 (B, length).

    Longer texts than the model's window are written in windows that overlap by half.
    `allowed`: which tokens may follow the prompt, bool (K,).
    `tick` is called with the number of tokens that were written in each text.
    """
    window = model.data.shape[0]
    written = np.broadcast_to(prompt[:length].astype(np.int64), (len(numbers), min(len(prompt), length)))
    part = 0
    while written.shape[1] < length:
        context = written[:, -(window // 2) :] if written.shape[1] >= window else written
        new = min(window - context.shape[1], length - written.shape[1])
        tokens = np.concatenate([context, np.zeros((len(numbers), new), np.int64)], 1)
        free = np.arange(tokens.shape[1]) >= context.shape[1]
        here = None
        if allowed is not None and not part:
            here = np.ones((len(free), len(allowed)), bool)
            here[context.shape[1]] = allowed
        whole = fill(model, writing, tokens, free, numbers, condition, here, part=part)
        written, part = np.concatenate([written, whole[:, context.shape[1] :]], 1), part + 1
        if tick:
            tick(new)
    return written


def infill(
    model: Model,
    writing: Writing,
    numbers: Sequence[int],
    tokens: np.ndarray,
    free: np.ndarray,
    condition: Condition | None = None,
    allowed: np.ndarray | None = None,
    tick: Tick | None = None,
) -> np.ndarray:
    """`tokens` (L,) with those at `free`, bool (L,), written anew: int64 (B, L).

    A text longer than the window is filled in from left to right, in windows of which a quarter lies before the first
    blank and a quarter after the last that is kept.
    """
    window, part = model.data.shape[0], 0
    found, left = np.tile(tokens.astype(np.int64), (len(numbers), 1)), free.copy()
    while left.any():
        first = int(np.flatnonzero(left)[0])
        start = max(0, min(first - window // 4, len(tokens) - window))
        here = slice(start, start + window)
        among = None if allowed is None else allowed[here]
        whole = fill(model, writing, found[:, here], left[here], numbers, condition, among, part=part)
        end = start + window if start + window >= len(tokens) else start + 3 * window // 4
        kept = slice(start, end)
        found[:, kept] = whole[:, : end - start]
        if tick:
            tick(int(left[kept].sum()))
        left[kept], part = False, part + 1
    return found


def rewrite(
    model: Model,
    writing: Writing,
    numbers: Sequence[int],
    tokens: np.ndarray,
    strength: float,
    condition: Condition | None = None,
    tick: Tick | None = None,
) -> np.ndarray:
    """SDEdit of a text: noise to the time `strength` in (0, 1], where that share of the tokens is lost, and back.

    tokens (L,); returns int64 (B, L). A text longer than the window is cut into windows, each edited alone.
    """
    process, window = process_of(model), model.data.shape[0]
    found = np.tile(tokens.astype(np.int64), (len(numbers), 1))
    time = float(process.schedule.time(np.log1p(-strength) - np.log(strength))) if strength < 1 else 1.0
    for part, start in enumerate(range(0, len(tokens), window)):
        here = slice(start, start + window)
        x0 = torch.from_numpy(found[:, here]).to(model.device)
        x_t = process.corrupt(x0, time, _draws(writing, numbers, part)(0))
        if process.mask is None:
            found[:, here] = _sampled(
                model, writing, x_t, _draws(writing, numbers, part), model.denoiser.bind(condition), time
            ).cpu()
        else:
            for row, number in enumerate(numbers):  # each lost other tokens
                free = (x_t[row] == process.mask).cpu().numpy()
                one = None if condition is None else condition[row : row + 1]
                found[row, here] = fill(model, writing, found[row : row + 1, here], free, [number], one, part=part)[0]
        if tick:
            tick(x0.shape[1])
    return found


@torch.no_grad()
def fill(
    model: Model,
    writing: Writing,
    tokens: np.ndarray,
    free: np.ndarray,
    numbers: Sequence[int],
    condition: Condition | None = None,
    allowed: np.ndarray | None = None,
    part: int = 0,
) -> np.ndarray:
    """Texts within one window, int64 (B, M), with those of their tokens at `free`, bool (M,), drawn anew.

    Each is drawn among those that are `allowed` at its place, bool (M, K): of what the model says, the others are
    struck out. That does not make the tokens before it prefer what goes well with them.
    `part` numbers the windows of one text. A model that writes in spans does so: to the tokens that are free in one
    span it shows nothing that comes after.
    """
    process, window = process_of(model), model.data.shape[0]
    condition = model.taken(condition, len(numbers))  # type: ignore[assignment]
    x = torch.from_numpy(np.array(tokens, dtype=np.int64)).to(model.device)
    if not free.any():
        return x.cpu().numpy()
    places = torch.from_numpy(np.flatnonzero(free)).to(model.device)
    padded = torch.full((len(x), window), process.values, device=x.device)
    padded[:, : x.shape[1]] = x
    ruled = None
    if allowed is not None:
        ruled = torch.ones(window, process.values, dtype=torch.bool, device=x.device)
        ruled[: x.shape[1]] = torch.from_numpy(allowed).to(x.device)
    if process.mask is None:  # what lies beyond a short text is written too, and cut off
        known = torch.from_numpy(np.pad(~free, (0, window - len(free)))).to(x.device)
        step = holding(TOKEN_SAMPLERS[writing.named(process)].step, padded.clamp(max=process.values - 1), known)
        start = process.prior(padded).sample(_draws(writing, numbers, part)(0))
        denoise = _among(model.denoiser.bind(condition), ruled)
        written = _sampled(model, writing, start, _draws(writing, numbers, part), denoise, step=step)
        return written[:, : x.shape[1]].cpu().numpy()
    padded[:, places] = process.values
    span = model.config.network.span or window
    asked = Remembered(model.denoiser.bind, condition)
    for number in torch.unique(places // span).tolist():
        here = places[places // span == number]

        def law(x_t: Tensor, t: Time, here: Tensor = here) -> Categorical:
            return Categorical(asked(padded.index_copy(1, here, x_t), t).log_probs[:, here])

        denoise = _among(law, None if ruled is None else ruled[here])
        draws = _draws(writing, numbers, part, number)
        start = padded[:, here]
        step, grid = TOKEN_SAMPLERS[writing.named(process)].step, writing.times(process, len(here))
        for state in trajectory(denoise, process, grid, step, start, draws):
            last = state
        padded[:, here] = last.x
    return padded[:, : x.shape[1]].cpu().numpy()


def _among(denoise: Denoise, allowed: Tensor | None) -> Denoise:
    """The same law among the values that are `allowed` at each place, bool (L, K)."""
    if allowed is None:
        return denoise
    return lambda x_t, t: Categorical(denoise(x_t, t).log_probs.where(allowed, -torch.inf).log_softmax(-1))


@torch.no_grad()
def _sampled(
    model: Model,
    writing: Writing,
    start: Tensor,
    draws: Callable[[int], Draw],
    denoise: Denoise,
    time: float = 1.0,
    step: object = None,
) -> Tensor:
    process = process_of(model)
    rule = step or TOKEN_SAMPLERS[writing.named(process)].step
    grid = writing.times(process, start.shape[1], time)
    for state in trajectory(denoise, process, grid, rule, start, draws):  # type: ignore[arg-type]
        last: State = state
    return last.x


def _draws(writing: Writing, numbers: Sequence[int], part: int, span: int = 0) -> Callable[[int], Draw]:
    """Independent numbers for every window and span of a text."""
    draws = keyed_draws(writing.seed, numbers, Purpose.SAMPLE)
    return lambda step: draws(step).fold(1 + part).fold(1 + span)


def process_of(model: Model) -> CategoricalProcess:
    """The process of a model of texts."""
    assert isinstance(model.denoiser, TokenDenoiser)
    process: CategoricalProcess = model.denoiser.process
    return process
