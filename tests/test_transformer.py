"""The transformer: who sees whom, and that spans of one token are an autoregressive model exactly."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from undiffuse.networks import Transformer
from undiffuse.networks.transformer import _mask, _turned, _turns, attention
from undiffuse.objectives import count, next_token, spans
from undiffuse.objectives.categorical import categorical_bound
from undiffuse.process import CategoricalProcess, LinearSurvival
from undiffuse.randomness import Given
from undiffuse.token_denoiser import TokenDenoiser

K = 3


def network(span: int = 0, seed: int = 0, times: bool = False) -> Transformer:
    """A small one with random weights throughout, in float64."""
    torch.manual_seed(seed)
    made = Transformer(K + 1, K, width=64, blocks=2, span=span, times=times).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


def denoiser(span: int = 0, shifts: bool = False) -> TokenDenoiser:
    made = network(span)
    return TokenDenoiser(made, CategoricalProcess(LinearSurvival(), K, dtype=torch.float64), shifts=shifts)


def seen_by(made: Transformer, length: int) -> Tensor:
    """Which place (column) changes the logits of which (row), bool (L, L)."""
    x = torch.randint(K, (1, length))
    before = made(x, torch.zeros(1))
    found = torch.zeros(length, length, dtype=torch.bool)
    for place in range(length):
        other = x.clone()
        other[0, place] = (x[0, place] + 1) % K
        found[:, place] = (made(other, torch.zeros(1)) - before).abs().amax(-1)[0] > 1e-6
    return found


@pytest.mark.parametrize("span", [0, 1, 2, 3])
def test_who_sees_whom(span: int) -> None:
    number = torch.arange(6) // (span or 6)
    assert torch.equal(seen_by(network(span), 6), number[:, None] >= number)


@pytest.mark.parametrize("span", [1, 2, 3])
def test_spans_trained_at_once_are_those_written_one_by_one(span: int) -> None:
    """The logits of a span beside the clean text are those where only what is before it is there."""
    made = network(span)
    x0, hidden = torch.randint(K, (2, 6)), torch.rand(2, 6) < 0.6
    x_t = x0.masked_fill(hidden, K)
    together = made(x_t, torch.zeros(2), None, x0)
    for first in range(0, 6, span):
        alone = torch.cat([x0[:, :first], x_t[:, first:]], 1)
        here = slice(first, first + span)
        assert torch.allclose(together[:, here], made(alone, torch.zeros(2))[:, here], atol=1e-10)


def test_positions_are_relative() -> None:
    """What rotary positions say of two tokens is how far apart they are: q_i . k_j depends on i - j alone."""
    cos, sin = _turns(9, torch.device("cpu"))
    q, k = torch.randn(2, 64)

    def product(i: int, j: int) -> float:
        at = [_turned(one[None], (cos[place, None], sin[place, None]))[0] for one, place in ((q, i), (k, j))]
        return float(at[0] @ at[1])

    assert product(2, 5) == pytest.approx(product(5, 8), abs=1e-4)
    assert abs(product(2, 5) - product(2, 6)) > 1e-2


def strings() -> Tensor:
    return torch.tensor(list(itertools.product(range(K), repeat=3)))


def test_spans_of_one_token_are_a_likelihood() -> None:
    """exp(-L loss) sums to 1 over all strings, whatever u and the noise."""
    x0 = strings()
    for seed in (0, 1):
        torch.manual_seed(seed)
        draw = Given(torch.rand(len(x0), 3, dtype=torch.float64), is_uniform=True)
        loss = spans(denoiser(1), x0, None, torch.rand(len(x0), dtype=torch.float64), draw, span=1)
        assert (-3 * loss.double()).exp().sum() == pytest.approx(1, abs=1e-10)


def test_the_rival_is_a_likelihood() -> None:
    x0 = strings()
    draw = Given(torch.zeros(len(x0), 3, dtype=torch.float64), is_uniform=True)
    loss = next_token(denoiser(1, shifts=True), x0, None, torch.zeros(len(x0), dtype=torch.float64), draw)
    assert (-3 * loss.double()).exp().sum() == pytest.approx(1, abs=1e-10)


def test_one_span_is_the_count_form() -> None:
    x0 = torch.randint(K, (40, 6))
    u = torch.rand(40, dtype=torch.float64)
    draw = Given(torch.rand(40, 6, dtype=torch.float64), is_uniform=True)
    made = denoiser(6)
    assert torch.allclose(
        spans(made, x0, None, u, draw, span=6).double(), count(made, x0, None, u, draw).double(), atol=1e-10
    )


def test_spans_bound_what_the_model_writes() -> None:
    """The mean over u and masks is, of each span, the mean over orders of the chain rule: by enumeration."""
    made = denoiser(2)
    x0 = torch.tensor([[0, 2, 1, 1]])
    orders = [torch.tensor([0.1, 0.9]), torch.tensor([0.9, 0.1])]
    losses = [
        spans(
            made,
            x0,
            None,
            torch.tensor([u]).double(),
            Given(torch.cat([a, b])[None].double(), True),
            span=2,
        )
        for u in (0.25, 0.75)
        for a in orders
        for b in orders
    ]
    estimate = 4 * torch.stack(losses).mean().item()

    def log_prob(known: list[int], place: int) -> float:
        x = torch.full((1, 4), K)
        x[0, known] = x0[0, known]
        return float(made.network(x, torch.zeros(1), None)[0, place].log_softmax(-1)[x0[0, place]])

    exact = 0.0
    for first in (0, 2):
        before = list(range(first))
        for a, b in ((first, first + 1), (first + 1, first)):
            exact -= 0.5 * (log_prob(before, a) + log_prob([*before, a], b))
    assert estimate == pytest.approx(exact, abs=1e-10)


def test_time_is_seen_only_where_it_is_asked_for() -> None:
    x = torch.randint(K, (2, 5))
    for times in (False, True):
        made = network(times=times)
        same = torch.allclose(made(x, torch.zeros(2)), made(x, torch.full((2,), 3.0)))
        assert same != times


@pytest.mark.parametrize("span", [0, 1])
def test_plain_attention_is_the_fused_one(span: int) -> None:
    """Both in bf16 beside float64: rounding of bf16 (2^-8) is all that parts them, in the result and in gradients."""
    torch.manual_seed(0)
    mask, upstream = _mask(40, span, False, torch.device("cpu")), torch.randn(2, 3, 40, 16)
    parts = [torch.randn(2, 3, 40, 16, dtype=torch.bfloat16) for _ in range(3)]
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        q, k, v = (part.detach().to(dtype, copy=True).requires_grad_() for part in parts)
        h = attention(q, k, v, mask)
        (h * upstream.to(dtype)).sum().backward()
        found.append([h.detach().double(), *(x.grad.double() for x in (q, k, v))])
    for plain, exact in zip(*found, strict=True):
        torch.testing.assert_close(plain, exact, rtol=0, atol=2**-7 * exact.abs().amax().item())


@pytest.mark.parametrize("span", [0, 2])
def test_logits_at_the_places_that_count_are_the_same_loss_and_gradient(span: int) -> None:
    made = network(span).requires_grad_(True)
    process = CategoricalProcess(LinearSurvival(), K, dtype=torch.float64)
    x0, u = torch.randint(K, (4, 6)), torch.rand(4, dtype=torch.float64)
    draw = Given(torch.rand(4, 6, dtype=torch.float64), True)
    losses = [partial(spans, span=span)] if span else [count, categorical_bound]
    for loss in losses:
        found = []
        for chooses in (False, True):
            value = loss(TokenDenoiser(made, process, chooses=chooses), x0, None, u, draw).sum()
            found.append([value, *torch.autograd.grad(value, list(made.parameters()))])
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)
