"""The denoiser of tokens: a network's logits and the element's own observation, joined by Bayes' rule.

The network says p(x_0i | the other noisy elements). What the element itself tells is known exactly:

    log p(x_0i | x_t) = logits + log q(x_ti | x_0i) + const.

Under absorbing noise a token that is there stays, and the mask has no probability (MDLM's carry-over and zero masking
probabilities: Sahoo et al. 2024, section 3.2.3). Under uniform noise the logits are the leave-one-out prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from undiffuse.conditions import Condition
from undiffuse.denoiser import LOG_SNR_LIMIT
from undiffuse.process import Categorical, CategoricalProcess, OrdinalProcess, Time


@dataclass(frozen=True)
class TokenDenoiser:
    """A network used as a denoiser for a categorical process of K values.

    Attributes:
        network: (x_t int64 (B, L), log-SNR (B,) float32, condition) -> logits (B, L, K).
        process: any of its kind and number of values, not only the one trained on.
        shifts: the network is given what stands before each place, as autoregressive models are, and not its own token.
        chooses: the network takes `at`, bool (B, L), and then makes the logits of these places alone, (N, K).
    """

    network: Callable[..., Tensor]
    process: CategoricalProcess | OrdinalProcess
    shifts: bool = field(default=False, kw_only=True)
    chooses: bool = field(default=False, kw_only=True)

    def logits(self, x_t: Tensor, t: Time, condition: Condition | None = None, **inputs: Tensor) -> Tensor:
        """ln p(x_0i | the other noisy elements) + const: (B, L, K), of the process's dtype.

        `inputs` are further ones of the network.
        """
        log_snr = self.process.schedule.log_snr(t).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        log_snr = log_snr.to(device=x_t.device, dtype=torch.float32).expand(len(x_t))
        if self.shifts:  # the mask stands before the first
            x_t = torch.cat([torch.full_like(x_t[:, :1], self.process.values), x_t[:, :-1]], 1)
        return self.network(x_t, log_snr, condition, **inputs).to(self.process.dtype)

    def errors(
        self, x_t: Tensor, t: Time, x0: Tensor, at: Tensor, condition: Condition | None = None, **inputs: Tensor
    ) -> Tensor:
        """-ln p(x_0i | the other noisy elements) where `at`, bool like x_0, is true, and 0 elsewhere: like x_0."""
        if self.chooses and x_t.device.type == "cpu":  # a GPU would have to wait for the number of places
            logits = self.logits(x_t, t, condition, at=at, **inputs)
            found = cross_entropy(logits, x0[at], reduction="none")
            return found.new_zeros(x0.shape).masked_scatter(at, found)
        logits = self.logits(x_t, t, condition, **inputs)
        return cross_entropy(logits.flatten(0, -2), x0.flatten(), reduction="none").view_as(x0).where(at, 0)

    def __call__(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> Categorical:
        """p(x_0 | x_t) over the K values. `t`: one for the batch or one per sample."""
        return Categorical((self.logits(x_t, t, condition) + self._evidence(x_t, t)).log_softmax(-1))

    def bind(self, condition: Condition | None) -> Callable[[Tensor, Time], Categorical]:
        """The denoiser with its condition bound."""
        return lambda x_t, t: self(x_t, t, condition)

    def _evidence(self, x_t: Tensor, t: Time) -> Tensor:
        """ln q(x_t | x_0) + const, (B, L, K)."""
        # Whenever a token has survived, it is x_0. At t = 0 that leaves known tokens beside masks, and at t = 1, where
        # none survives by chance, a given prompt: neither may become NaN.
        return self.process.likelihood(x_t, 0.5 if self.process.mask is not None else t)
