"""Step rules for tokens under a categorical process: int64 (B, L), each one of K values or, under absorbing noise, K.

    step(state at t, s, denoise, process, draw) -> state at s,   s < t,   denoise(x_t, t) -> Categorical over K values

Under absorbing noise whether a position is revealed and its value come from two float64 uniform numbers, the value by
inverting the CDF. There is no Gumbel noise: in float32 it draws rare values too rarely.

Positions that are revealed in one step are drawn independently of each other, so a rule is exact if it reveals one a
step (`first_hitting`), and approximate to the dependence of those it reveals at once.
"""

import torch
from torch import Tensor

from undiffuse.errors import UsageError
from undiffuse.process import Categorical, CategoricalProcess, Denoise, float64_device
from undiffuse.randomness import Draw
from undiffuse.sampling.steps import State, ancestral

OWN = 100
"""The fold of a step's numbers that these rules divide further; what wraps steps (`undiffuse.editing.known`) takes low
numbers."""
REMASKING = ("cap", "rescale")


def reveal(state: State, s: float, denoise: Denoise, process: CategoricalProcess, draw: Draw) -> State:
    """Ancestral sampling: a mask is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t), or else stays.

    Sahoo et al. 2024 (MDLM), eq. 7. Under uniform noise it is `ancestral`, which draws x_s from `process.reverse`.
    One evaluation. Raises ValueError unless s < t.
    """
    _needs_descent(state.t, s)
    if process.mask is None:
        return ancestral(state, s, denoise, process, draw)
    return _remasked(state, s, denoise, process, draw, 0.0)


def remdm(
    state: State,
    s: float,
    denoise: Denoise,
    process: CategoricalProcess,
    draw: Draw,
    remasking: str = "cap",
    eta: float = 0.02,
) -> State:
    """Ancestral sampling that masks a token again with probability sigma, so that it can be corrected (ReMDM).

    Wang et al. 2025, eq. 3: masks are revealed more often in return, with probability
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which keeps every marginal q(x_s | x_0). Sigma is at most
    sigma_max = min(1, (1 - alpha_s) / alpha_t): 0 at the data.

    Args:
        remasking: "cap", sigma = min(eta, sigma_max); or "rescale", sigma = eta sigma_max (their section 4.1).
        eta: 0 to 1; 0 is `reveal`.

    One evaluation. Raises UsageError for other options or noise that is not absorbing, ValueError unless s < t.
    """
    _needs_absorbing(process, "remdm")
    _needs_descent(state.t, s)
    if remasking not in REMASKING or not 0 <= eta <= 1:
        raise UsageError(f"remdm takes remasking = cap or rescale and an eta from 0 to 1, not {remasking}, {eta:g}")
    alpha_s, alpha_t = _survival(process, s), _survival(process, state.t)
    most = 1.0 if 1 - alpha_s >= alpha_t else (1 - alpha_s) / alpha_t
    return _remasked(state, s, denoise, process, draw, min(eta, most) if remasking == "cap" else eta * most)


def confidence(state: State, s: float, denoise: Denoise, process: CategoricalProcess, draw: Draw) -> State:
    """Reveals the masks whose most probable value is the most probable, as many as `reveal` does on average, rounded.

    After MaskGIT (Chang et al. 2022, section 3.2), but positions are chosen by the prediction alone, so without Gumbel
    noise or a temperature, and values are drawn. One position a step is exact, in this order as in any. Several are not
    and cost diversity: a sampler to choose, never the default. Ties go to the first position.

    One evaluation. Raises UsageError for noise that is not absorbing, ValueError unless s < t.
    """
    _needs_absorbing(process, "confidence")
    _needs_descent(state.t, s)
    prediction: Categorical = denoise(state.x, state.t)
    masked = state.x.eq(process.values)
    alpha_s, alpha_t = _survival(process, s), _survival(process, state.t)
    share = (alpha_s - alpha_t) / (1 - alpha_t)
    count = (masked.sum(1, keepdim=True) * share + 0.5).floor()
    sureness = torch.where(masked, prediction.log_probs.amax(-1), -torch.inf)
    rank = sureness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return State(_revealed(state.x, masked & (rank < count), prediction, draw.fold(OWN)), s, prediction.x0)


def first_hitting(state: State, s: float, denoise: Denoise, process: CategoricalProcess, draw: Draw) -> State:
    """Reveals one token a time at the exact times of the reverse process (Zheng et al. 2024, proposition 4.1).

    The next of n masks, each equally likely, is revealed at the time t' where (1 - alpha_t') / (1 - alpha_t) is the
    n-th root of a uniform number. The law is that of any-order autoregressive sampling in random order, whatever the
    grid, which only says which states are seen.

    One evaluation for each token and none in a step that reveals nothing: at most L for a row, and for a batch in one
    step from 1 to 0, where all rows reveal their k-th token together. On finer grids rows wait for each other; then
    `Remembered` spares those that wait. The denoiser is given a time per row.

    Raises UsageError for noise that is not absorbing, ValueError unless s < t.
    """
    _needs_absorbing(process, "first-hitting")
    _needs_descent(state.t, s)
    x, x0, own = state.x, state.x0, draw.fold(OWN)
    rows = torch.arange(len(x), device=x.device)
    floor = 1 - _survival(process, s)
    level = torch.full((len(x),), 1 - _survival(process, state.t), dtype=torch.float64)  # 1 - alpha_t', on the CPU
    for number in range(1, x.shape[1] + 1):
        masked = x.eq(process.values)
        left = masked.sum(1).cpu().double()
        u, which, value = own.fold(number).uniform(torch.empty(len(x), 3)).unbind(1)
        level = level * (1 - u) ** (1 / left)
        going = (left > 0) & (level > floor)
        if not going.any():
            break
        times = process.schedule.time(torch.log1p(-level) - level.log())
        prediction: Categorical = denoise(x, times.where(going, state.t))
        x0 = prediction.x0
        place = (masked.cumsum(1) > (which * left).floor().to(x.device).unsqueeze(1)).int().argmax(1)
        revealed = Categorical(prediction.log_probs[rows, place]).at(value).to(x.device)
        x = x.index_put((rows, place), revealed.where(going.to(x.device), x[rows, place]))
    return State(x, s, x0)


def predictor_corrector(
    state: State, s: float, denoise: Denoise, process: CategoricalProcess, draw: Draw, back: float = 1.0
) -> State:
    """`reveal` to s, then noise up to t' = s + back (t - s) and `reveal` to s again.

    A corrector step of finite length, in place of the rates of Campbell et al. 2022 (section 4.4). With the exact
    denoiser it leaves the law of every single position at s as it is, q(x_s); and that of several up to the dependence
    of those that change at once, so the joint law only as t' - s becomes small. Two evaluations; one onto the data.

    Raises UsageError unless 0 < back <= 1, ValueError unless s < t.
    """
    if not 0 < back <= 1:
        raise UsageError(f"predictor-corrector takes a back above 0 and at most 1, not {back:g}")
    own = draw.fold(OWN)
    below = reveal(state, s, denoise, process, own.fold(1))
    if s == 0:
        return below
    up = s + back * (state.t - s)
    noisy = process.transition(below.x, s, up).sample(own.fold(2))
    return reveal(State(noisy, up), s, denoise, process, own.fold(3))


def _remasked(state: State, s: float, denoise: Denoise, process: CategoricalProcess, draw: Draw, sigma: float) -> State:
    """Masks tokens with probability sigma and reveals masks as often as keeps the marginals."""
    prediction: Categorical = denoise(state.x, state.t)
    masked = state.x.eq(process.values)
    alpha_s, alpha_t = _survival(process, s), _survival(process, state.t)
    revealed = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    u = draw.uniform(float64_device(state.x)).to(state.x.device)
    x = _revealed(state.x, masked & (u < revealed), prediction, draw.fold(OWN))
    return State(x.masked_fill(~masked & (u < sigma), process.values), s, prediction.x0)


def _revealed(x: Tensor, where: Tensor, prediction: Categorical, draw: Draw) -> Tensor:
    """x with values that are drawn where `where`; the CDF is only computed there."""
    u = draw.uniform(float64_device(x)).to(x.device)
    return x.masked_scatter(where, Categorical(prediction.log_probs[where]).at(u[where]))


def _survival(process: CategoricalProcess, t: float) -> float:
    """alpha_t."""
    return process.log_survival(t).exp().item()


def _needs_absorbing(process: CategoricalProcess, rule: str) -> None:
    if process.mask is None:
        raise UsageError(f"{rule} reveals masks, but this model's noise has none ({process.kind}): use ancestral")


def _needs_descent(t: float, s: float) -> None:
    if s >= t:
        raise ValueError(f"samplers of tokens go down in time, not from t = {t:g} to {s:g}")
