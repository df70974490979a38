"""Classifier guidance (Dhariwal & Nichol 2021, ADM-G, section 4), as a shift of x_0.

By Bayes' rule grad ln p(x_t | y) = grad ln p(x_t) + grad ln p(y | x_t), and with grad ln p(x_t) = -eps / sigma_t and
x_t = alpha_t x_0 + sigma_t eps (Tweedie's formula) the posterior mean given y is

    E[x_0 | x_t, y] = E[x_0 | x_t] + sigma_t^2 / alpha_t grad ln p(y | x_t).

So a guided denoiser is a denoiser: whatever its network predicts, and for every sampler. The paper shifts the mean of
p(x_s | x_t) by Sigma grad ln p(y | x_t) instead (its algorithm 1). In the form here that mean moves by

    alpha_s / alpha_t c sigma_t^2 grad ln p(y | x_t),   c = 1 - SNR(t) / SNR(s),

which is beta_t / sqrt(1 - beta_t) times the gradient for neighbouring steps. Sigma, be it learnt or not, lies between
c sigma_s^2 and about c sigma_t^2, so the two agree as s -> t. For steps of any length only the shift of x_0 is exact:
without noise Sigma is 0, and the paper itself shifts eps (its algorithm 2), which is this shift of x_0.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.classifier import Classifier
from undiffuse.conditions import Condition, Labels, part_for
from undiffuse.denoiser import LOG_SNR_LIMIT
from undiffuse.errors import UsageError
from undiffuse.names import cut
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, expand

LogProb = Callable[[Tensor, Time], Tensor]
"""(x_t (B, ...), t) -> ln p(y | x_t) of each sample, up to a constant: (B,), differentiable in x_t. Not only for
classes: any observation y of x_0 has one, and guidance by it gives the posterior mean of x_0."""


def classifier_guidance(denoise: Denoise, process: GaussianProcess, log_prob: LogProb, scale: float = 1.0) -> Denoise:
    """D' = D + scale sigma^2 / alpha grad ln p(y | x_t), with the eps that follows; v and logits are kept.

    Scale 1 is the posterior mean of p(x) p(y | x), 0 the denoiser as it is; more sharpens p(y | x_t) to a power that is
    no longer the law of any data. Wrapped twice, it takes observations that are independent given x_t; of others the
    second log_prob must be that given the first as well.

    Where next to no signal is left, the factor grows without bound, the gradient goes to 0, and their product tends to
    E[x_0 | y] - E[x_0]; at alpha = 0 it would be NaN. For log-SNRs below -20 (alpha / sigma below 5e-5) both are taken
    at -20, where x_t looks the same: the shift is then right to about 5e-5 of itself.

    Args:
        denoise: gets no gradients, unless the caller computes them.
        process: gives the noise levels of both.
        log_prob: ln p(y | x_t), of each sample by itself. One evaluation and one backward pass a call.
    """
    latest = process.schedule.time(-LOG_SNR_LIMIT).item()

    def guided(x_t: Tensor, t: Time) -> Prediction:
        prediction, seen = denoise(x_t, t), t.clamp(max=latest) if isinstance(t, Tensor) else min(t, latest)
        level = process.noise_level(seen)
        shift = expand(scale * level.sigma**2 / level.alpha, x_t) * gradient(log_prob, x_t, seen)
        return prediction.with_x0(prediction.x0 + shift, x_t, process.noise_level(t))

    return guided


def gradient(log_prob: LogProb, x_t: Tensor, t: Time) -> Tensor:
    """grad ln p(y | x_t) of each sample, shaped like x_t; itself differentiable where x_t already has a graph."""
    graph = torch.is_grad_enabled() and x_t.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t if graph else x_t.detach().clone().requires_grad_()
        return torch.autograd.grad(log_prob(x, t).sum(), x, create_graph=graph)[0]


def class_log_prob(classifier: Classifier, process: GaussianProcess, condition: Condition) -> LogProb:
    """ln p(y | x_t) of the classes in `condition`, `Labels` (B,) or `Several`, by a trained classifier.

    States are those of `process`, on their device.
    A label for "any class" has probability 1, so its sample is not guided. Raises UsageError for labels of another
    number of classes, and for a class that the classifier saw no picture of.
    """
    labels = part_for(condition, "label")
    if not isinstance(labels, Labels):
        raise UsageError(f"the classifier {classifier.name} guides by a class: name one with --class")
    names, share = classifier.data.classes, classifier.data.class_share
    if labels.classes != len(names):
        raise UsageError(
            f"the classifier {classifier.name} knows {len(names)} classes, and the labels {labels.classes}"
        )
    for label in labels.index.unique().tolist():
        if label < len(names) and not share[label]:
            raise UsageError(f"the classifier {classifier.name} saw no picture of {cut(names[label])!r} in training")

    def log_prob(x_t: Tensor, t: Time) -> Tensor:
        log_probs = classifier.log_probs(x_t, process.noise_level(t))
        return functional.pad(log_probs, (0, 1)).gather(1, labels.index[:, None])[:, 0]

    return log_prob
