"""TokenDenoiser: Bayes' rule by hand, and what the ends must give."""

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.process import CategoricalProcess, LinearSurvival
from undiffuse.token_denoiser import TokenDenoiser

RAW = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -0.5]], dtype=torch.float64)


class Recorder:
    """A network of fixed logits that notes the log-SNRs it is given."""

    def __init__(self) -> None:
        self.log_snr = torch.empty(0)

    def __call__(self, x_t: Tensor, log_snr: Tensor, condition: object) -> Tensor:
        self.log_snr = log_snr
        return RAW.expand(len(x_t), -1, -1)


def denoiser(kind: str) -> TokenDenoiser:
    return TokenDenoiser(Recorder(), CategoricalProcess(LinearSurvival(), 3, kind, torch.float64))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_absorbing_keeps_tokens_and_predicts_masks(t: float) -> None:
    """A token has probability 1 at every t, a prompt at t = 1 included; a mask gets the network's probabilities."""
    law = denoiser("absorbing").bind(None)(torch.tensor([[2, 3], [3, 0]]), t)
    assert law.log_probs[0, 0].exp().tolist() == [0, 0, 1] and law.log_probs[1, 1].exp().tolist() == [1, 0, 0]
    expected = RAW.exp() / RAW.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(law.log_probs[0, 1].exp(), expected[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(law.log_probs[1, 0].exp(), expected[0], rtol=1e-13, atol=0)


def test_uniform_adds_what_the_element_tells() -> None:
    """p(x_0 | x_t) is exp(logits) (alpha [x_0 = x_t] + (1 - alpha) / K), normalised; a time for each sample."""
    x_t, times = torch.tensor([[2, 0], [1, 1]]), torch.tensor([0.2, 0.9], dtype=torch.float64)
    ours = denoiser("uniform")(x_t, times).log_probs.exp().numpy()
    for row, column in np.ndindex(2, 2):
        t = times[row].item()
        weight = np.exp(RAW[column].numpy()) * ((1 - t) * (np.arange(3) == x_t[row, column].item()) + t / 3)
        np.testing.assert_allclose(ours[row, column], weight / weight.sum(), rtol=1e-13)
    at_data = denoiser("uniform")(x_t, 0.0).log_probs.exp()
    assert torch.equal(at_data, torch.nn.functional.one_hot(x_t, 3).double())
    at_noise = denoiser("uniform")(x_t, 1.0).log_probs
    torch.testing.assert_close(at_noise, RAW.log_softmax(-1).expand(2, -1, -1), rtol=1e-13, atol=0)


def test_the_network_gets_a_clamped_log_snr() -> None:
    """float32 (B,), within +-20 at the exact ends, where it is infinite."""
    d, x = denoiser("absorbing"), torch.zeros(2, 2, dtype=torch.long)
    for t, expected in ((0.0, 20.0), (0.5, 0.0), (1.0, -20.0)):
        d.logits(x, t)
        assert isinstance(d.network, Recorder) and d.network.log_snr.dtype == torch.float32
        assert d.network.log_snr.tolist() == [expected, expected]
