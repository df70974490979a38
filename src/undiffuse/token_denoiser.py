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
    """

    network: Callable[[Tensor, Tensor, Condition | None], Tensor]
    process: CategoricalProcess | OrdinalProcess
    shifts: bool = field(default=False, kw_only=True)

    def logits(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> Tensor:
        """ln p(x_0i | the other noisy elements) + const: (B, L, K), of the process's dtype."""
        log_snr = self.process.schedule.log_snr(t).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        log_snr = log_snr.to(device=x_t.device, dtype=torch.float32).expand(len(x_t))
        if self.shifts:  # the mask stands before the first
            x_t = torch.cat([torch.full_like(x_t[:, :1], self.process.values), x_t[:, :-1]], 1)
        return self.network(x_t, log_snr, condition).to(self.process.dtype)

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
