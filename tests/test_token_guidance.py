"""Guidance of tokens: Bayes' rule with probabilities, and what noise has already decided."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.guidance import guided_tokens, of_two, with_and_without
from undiffuse.process import CategoricalProcess, LinearSurvival
from undiffuse.token_denoiser import TokenDenoiser


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_tilts_by_the_classifier(scale: float) -> None:
    """p_u(x) p(c | x)^w, normalised, for a token under uniform noise: by Bayes with probabilities."""
    q, t, w = CategoricalProcess(LinearSurvival(), 3, "uniform", torch.float64), 0.7, scale
    of_class = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])  # p(x | c), both classes equally likely

    def of(p: np.ndarray) -> TokenDenoiser:
        return TokenDenoiser(lambda x, log_snr, c: torch.from_numpy(p).log().expand(*x.shape, 3), q)

    pair = of_two(of(of_class[0]).bind(None), of(of_class.mean(0)).bind(None))
    x_t = torch.tensor([[0, 2], [1, 1]])
    ours = guided_tokens(pair, w)(x_t, t).log_probs.exp()
    for place in np.ndindex(2, 2):
        seen = (1 - t) * (np.arange(3) == x_t[place].item()) + t / 3  # q(x_t | x_0)
        expected = of_class.mean(0) * seen * (of_class[0] / of_class.sum(0)) ** w
        np.testing.assert_allclose(ours[place], expected / expected.sum(), rtol=1e-12)


def test_guidance_of_masks_in_one_batch() -> None:
    """Tokens stay, whatever the scale, and `with_and_without` evaluates both conditions at once."""
    calls = []

    @dataclass(frozen=True)
    class Marked:
        marks: Tensor

        def joined(self, other: "Marked") -> "Marked":
            return Marked(torch.cat([self.marks, other.marks]))

    def net(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        calls.append(len(x))
        return condition.marks[:, None, None] * torch.tensor([1.0, 0.0, -1.0]).expand(*x.shape, 3)

    denoiser: Any = TokenDenoiser(net, CategoricalProcess(LinearSurvival(), 3))
    marked: Any = Marked(torch.tensor([1.0, 2.0]))
    pair = with_and_without(denoiser, marked, Marked(torch.tensor([0.5, 0.0])))  # type: ignore[arg-type]
    law = guided_tokens(pair, 3.0)(torch.tensor([[3, 1], [2, 3]]), 0.4).log_probs.exp()
    assert calls == [4] and law[0, 1].tolist() == [0, 1, 0] and law[1, 0].tolist() == [0, 0, 1]
    for row, place, slope in ((0, 0, 0.5 + 3 * 0.5), (1, 1, 3 * 2.0)):
        expected = np.exp(slope * np.array([1, 0, -1]))
        np.testing.assert_allclose(law[row, place], expected / expected.sum(), rtol=1e-6)
