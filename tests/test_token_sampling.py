"""The samplers of tokens in the loop: batches, remembered rows, known tokens, and what they refuse."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse.editing.known import holding
from undiffuse.errors import UsageError
from undiffuse.process import Categorical, CategoricalProcess, LinearSurvival
from undiffuse.randomness import keyed_draws
from undiffuse.sampling import TOKEN_SAMPLERS, Remembered, State, make_grid, predictor_corrector, remdm, trajectory
from undiffuse.token_denoiser import TokenDenoiser

SHARED = ["ancestral", "predictor-corrector"]
CASES = [(name, "absorbing") for name in TOKEN_SAMPLERS] + [(name, "uniform") for name in SHARED]


def network(x_t: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
    """Logits over 3 values that depend on the neighbours, not on the time."""
    k = torch.arange(3, dtype=torch.float64)
    return torch.cos(1.7 * k + x_t.roll(1, 1)[..., None]) + torch.sin(0.9 * k * (1 + x_t.roll(-1, 1)[..., None]))


def sampled(
    name: str, kind: str, rows: list[int], denoise: Any = None, steps: int = 12, wrap: Any = None
) -> list[Tensor]:
    """The states of the samples numbered `rows`."""
    q = CategoricalProcess(LinearSurvival(), 3, kind)
    sampler, draws = TOKEN_SAMPLERS[name], keyed_draws(0, rows)
    step = sampler.step if wrap is None else wrap(sampler.step)
    if name == "remdm":
        step = partial(remdm, eta=0.3) if wrap is None else wrap(partial(remdm, eta=0.3))
    grid, start = make_grid(sampler.grid, q.schedule, steps), q.prior(torch.zeros(len(rows), 8)).sample(draws(0))
    denoise = denoise or TokenDenoiser(network, q).bind(None)
    return [state.x for state in trajectory(denoise, q, grid, step, start, draws)]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_samples_do_not_depend_on_the_batch(name: str, kind: str) -> None:
    together = sampled(name, kind, [0, 1, 2, 3, 4])
    assert (together[-1] < 3).all() and len(together[-1].unique(dim=0)) > 1
    for states in zip(together, sampled(name, kind, [3]), sampled(name, kind, [4, 3]), strict=True):
        assert torch.equal(states[0][3:4], states[1]) and torch.equal(states[0][[4, 3]], states[2])


@pytest.mark.parametrize("name", TOKEN_SAMPLERS)
def test_remembered_rows_are_not_evaluated_again(name: str) -> None:
    """The same samples; a row is evaluated for what is new in it: at most once for each token, unless it is masked."""
    q, asked = CategoricalProcess(LinearSurvival(), 3), []

    def plain(x: Tensor, t: Any) -> Categorical:
        asked.append(x)
        return TokenDenoiser(network, q)(x, t)

    plainly = sampled(name, "absorbing", [0, 1, 2], plain, 60)
    remembered = Remembered(TokenDenoiser(network, q).bind)
    assert all(map(torch.equal, plainly, sampled(name, "absorbing", [0, 1, 2], remembered, 60)))
    new = [torch.ones(3, dtype=torch.bool), *((a != b).any(1) for a, b in itertools.pairwise(asked))]
    assert remembered.evaluations == sum(bool(rows.any()) for rows in new) <= len(asked)
    assert remembered.rows == sum(int(rows.sum()) for rows in new) < 3 * len(asked)
    if name in ("ancestral", "first-hitting", "confidence"):
        assert remembered.rows <= 3 * (8 + 1)  # the last for the row without masks


def test_first_hitting_takes_a_call_a_token() -> None:
    """Eight calls for a batch in one step; eight for a row on any grid; none for known tokens."""
    known = partial(holding, tokens=torch.ones(8).long(), known=torch.arange(8) < 3)
    for rows, steps, wrap in (
        ([0, 1, 2, 3], 1, None),
        ([5], 1, None),
        ([5], 100, None),
        ([6], 3, None),
        ([7], 2, known),
    ):
        calls = []

        def denoise(x: Tensor, t: Any) -> Categorical:
            calls.append(t)  # noqa: B023
            return TokenDenoiser(network, CategoricalProcess(LinearSurvival(), 3))(x, t)

        sampled("first-hitting", "absorbing", rows, denoise, steps, wrap)
        assert len(calls) == (8 if wrap is None else 5)


def test_remembered_gives_each_row_its_condition_and_time() -> None:
    """Only the rows that changed, with theirs."""
    seen = []

    def bind(condition: Tensor) -> Any:
        def denoise(x: Tensor, t: Tensor) -> Categorical:
            seen.append((condition.tolist(), x.tolist(), t.tolist()))
            return Categorical((x * 10 + condition[:, None])[..., None].double())

        return denoise

    remembered = Remembered(bind, torch.tensor([7, 8, 9]))
    x, t = torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    first = remembered(x, t).log_probs
    x[1, 0] = 6  # in place, as a caller may
    second = remembered(x, t).log_probs
    assert seen[1] == ([8], [[6, 3]], [0.2]) and first[1].flatten().tolist() == [28, 38]
    assert second.squeeze(-1).tolist() == [[7, 17], [68, 38], [49, 59]]
    assert torch.equal(remembered(x, t).log_probs, second) and (remembered.evaluations, remembered.rows) == (2, 4)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_known_tokens_never_change(name: str, kind: str) -> None:
    """In every state after the first and wherever the denoiser looks; under uniform noise, in the last."""
    tokens, known = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]] * 2), torch.tensor([1, 0, 0, 1, 1, 0, 0, 1]).bool()
    q, seen = CategoricalProcess(LinearSurvival(), 3, kind), []

    def denoise(x: Tensor, t: Any) -> Categorical:
        seen.append(x)
        return TokenDenoiser(network, q)(x, t)

    states = sampled(name, kind, [0, 1], denoise, 6, partial(holding, tokens=tokens, known=known))
    held = [*states[1:], *seen] if kind == "absorbing" else states[-1:]
    assert all(torch.equal(x[:, known], tokens[:, known]) for x in held)
    assert (states[-1] < 3).all() and not torch.equal(states[-1], tokens)
    if kind == "uniform":
        noisy = q.corrupt(tokens, 0.5, keyed_draws(0, [0, 1])(3).fold(1))
        assert torch.equal(states[3][:, known], noisy[:, known]) and not torch.equal(noisy, tokens)


def test_refusals() -> None:
    state, draw, uniform = (
        State(torch.zeros(1, 2).long(), 0.5),
        keyed_draws(0, [0])(1),
        CategoricalProcess(LinearSurvival(), 3, "uniform"),
    )
    denoise = TokenDenoiser(network, uniform).bind(None)
    for name in {*TOKEN_SAMPLERS} - {*SHARED}:
        with pytest.raises(UsageError, match=f"{name} reveals masks, but .* use ancestral"):
            TOKEN_SAMPLERS[name].step(state, 0.2, denoise, uniform, draw)
    for name in TOKEN_SAMPLERS:
        with pytest.raises(ValueError, match=r"go down in time, not from t = 0\.5 to 0\.7"):
            TOKEN_SAMPLERS[name].step(state, 0.7, denoise, CategoricalProcess(LinearSurvival(), 3), draw)
    with pytest.raises(UsageError, match="remasking = cap or rescale"):
        remdm(state, 0.2, denoise, CategoricalProcess(LinearSurvival(), 3), draw, "loop")
    with pytest.raises(UsageError, match="eta from 0 to 1"):
        remdm(state, 0.2, denoise, CategoricalProcess(LinearSurvival(), 3), draw, eta=1.5)
    with pytest.raises(UsageError, match="a back above 0 and at most 1, not 0"):
        predictor_corrector(state, 0.2, denoise, CategoricalProcess(LinearSurvival(), 3), draw, back=0.0)
