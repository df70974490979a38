"""What both flows are: an invertible map of pictures to normal noise, whose density is a change of variables.

    ln p(y) = ln N(z; 0, I) + ln |det dz/dy|,    z = f(y)

Discrete values have no density, so y is never the picture itself. With noise > 0 it is the picture plus normal noise of
that deviation, which Zhai et al. (2024, section 2.3) found decisive for samples; these are noisy as y is, and Tweedie's
formula takes the noise out. With noise = 0 it is the picture dequantised uniformly, and samples need nothing more: the
flow for likelihoods.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.errors import UsageError
from undiffuse.likelihood.dequantise import dequantised, offset_bits
from undiffuse.randomness import Draw
from undiffuse.rivals.flow.layers import Layer
from undiffuse.rivals.rival import Rival


class Flow(Rival, ABC):
    """An invertible map of pictures (B, C, H, W) to noise (B, N, D): N patches of D = C patch^2 numbers.

    Args:
        shape: (C, H, W).
        classes: how many there are; 0: no labels.
        patch: side of a patch in pixels, which divides H and W.
        noise: deviation of the normal noise that is added to pictures in [-1, 1]; 0: uniform dequantisation.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, patch: int, noise: float):
        super().__init__()
        channels, height, width = shape
        if height % patch or width % patch:
            raise UsageError(
                f"pictures of {width} x {height} are not full patches of {patch} pixels: choose another patch"
            )
        if not 0 <= noise < math.inf:
            raise UsageError(f"the noise of a flow is a deviation, 0 or more: not {noise}")
        self.shape, self.classes, self.patch, self.noise = shape, classes, patch, noise
        self.rows, self.columns = height // patch, width // patch
        self.tokens, self.numbers = self.rows * self.columns, channels * patch**2

    @abstractmethod
    def normalised(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Patches (B, N, D) -> noise z (B, N, D) and ln |det dz/dx| (B,)."""

    @abstractmethod
    def generated(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """The inverse: noise (B, N, D) -> patches (B, N, D)."""

    def forward(self, y: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures y (B, C, H, W) -> noise z (B, N, D) and ln |det dz/dy| (B,), of the dtype of y.

        Raises:
            UsageError: labels are missing, or given to a flow that has no classes.
        """
        self._check(labels)
        return self.normalised(functional.pixel_unshuffle(y, self.patch).flatten(2).mT, labels)

    def inverse(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Noise z (B, N, D) -> pictures y (B, C, H, W). Raises as `forward`."""
        self._check(labels)
        with torch.autocast(z.device.type, enabled=False):
            patches = self.generated(z, labels).mT.unflatten(2, (self.rows, self.columns))
        return functional.pixel_shuffle(patches, self.patch)

    def log_density(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """ln p(y) in nats (B,), of pictures (B, C, H, W) with noise."""
        z, log_det = self(y, labels)
        return log_det - 0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def denoised(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | y] = y + noise^2 grad ln p(y) for y = x_0 + noise eps (Tweedie; Zhai et al. 2024, eq. 7)."""
        with torch.enable_grad(), torch.autocast(y.device.type, enabled=False):
            y = y.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_density(y, labels).sum(), y)
        return y.detach() + self.noise**2 * score

    def losses(self, phase: str, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """-ln p(y) / (C H W), nats per dimension (B,), of x_0 (B, C, H, W) in [-1, 1] with noise from `draw`."""
        if self.noise:
            y = x0 + self.noise * draw.normal(x0)
        else:
            y = self._dequantised(x0, draw)
        return -self.log_density(y, labels) / x0[0].numel()

    @torch.no_grad()
    def generate(self, labels: Tensor | None, draw: Draw, count: int) -> Tensor:
        """`count` samples, float32 (count, C, H, W) in [-1, 1]; sample k is a function of the draw's k-th key."""
        like = next(self.parameters())
        y = self.inverse(draw.normal(like.new_empty(count, self.tokens, self.numbers)), labels)
        return (self.denoised(y, labels) if self.noise else y).float().clamp(-1, 1)

    @torch.no_grad()
    def nats(self, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """-ln P(picture) of 8-bit pictures x_0 (B, C, H, W) in [-1, 1], (B,), estimated without bias from above.

        Of uniform dequantisation: -ln p(y) + D ln 128 (undiffuse.likelihood.dequantise), so bits per dimension are
        7 - ln p(y) / (D ln 2). A flow that has learnt the density with normal noise of deviation s is as smooth as that
        noise, so it needs at least log2(128 sqrt(2 pi) s) bits per dimension, 4.0 at 0.05: for bits, noise = 0.
        """
        with torch.autocast(x0.device.type, enabled=False):
            log_density = self.log_density(self._dequantised(x0, draw), labels)
        return x0[0].numel() * offset_bits() * math.log(2) - log_density

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of the transformers' layers."""
        return [
            linear.weight
            for layer in self.modules()
            if isinstance(layer, Layer)
            for linear in layer.children()
            if isinstance(linear, nn.Linear)
        ]

    @staticmethod
    def _dequantised(x0: Tensor, draw: Draw) -> Tensor:
        return dequantised(x0, draw.uniform(x0)).to(x0.dtype)

    def _check(self, labels: Tensor | None) -> None:
        if self.classes and labels is None:
            raise UsageError(f"this flow was made for {self.classes} classes: it needs labels")
        if labels is not None and not self.classes:
            raise UsageError("this flow was made without classes: it takes no labels")
