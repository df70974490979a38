"""A U-Net that sees exact pixel values, which the likelihood of 8-bit pictures needs.

Fourier features of the input, predicted filters for each pixel, a last layer at full resolution, and features of which
values the picture has (`values.py`). Each is optional; without any it is a `UNet`, and its weights have the same names.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.conditions import Condition, Encoders
from undiffuse.networks.embedding import zero_
from undiffuse.networks.unet import UNet, norm
from undiffuse.networks.values import Values


class PixelUNet(UNet):
    """x (B, inputs, H, W), log-SNR (B,), condition or None -> (B, outputs, H, W).

    Args:
        head: channels at full resolution, per pixel, of a layer before the output; 0 for none.
        fourier: angular frequencies of the sines and cosines of every input that are appended to it, so that small
            differences of a pixel are visible (Kingma et al. 2021, appendix C).
        kernel: odd side of a filter of the input that the network predicts for each pixel and channel; its result is
            added to the first `inputs` outputs (as for renderings, Bako et al. 2017); 0 for none. Norms discard the
            exact brightness; a filter keeps it.
        values: how many values an element of the data takes, for a network whose last `inputs * values` outputs are
            their logits and which gets features of the values a picture has (`Values`); 0 for none.
        sigma_data: the root mean square of the data, for `values`.
        The rest: see `UNet`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        patch: int = 2,
        channels: tuple[int, ...] = (64, 128),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        encoders: Encoders | None = None,
        augmentation: int = 0,
        dropout: float = 0.0,
        head: int = 0,
        fourier: tuple[float, ...] = (),
        kernel: int = 0,
        values: int = 0,
        sigma_data: float = 1.0,
    ):
        read = Values(inputs, values, 4 * channels[0], sigma_data) if values else None
        seen = inputs * (1 + 2 * len(fourier)) + (read.features if read else 0)
        made = outputs + inputs * kernel**2
        super().__init__(
            seen,
            head or made,
            patch=patch,
            channels=channels,
            blocks=blocks,
            attention=attention,
            encoders=encoders,
            augmentation=augmentation,
            dropout=dropout,
        )
        self.inputs, self.outputs, self.fourier, self.kernel, self.values = inputs, outputs, fourier, kernel, read
        self.head: nn.Sequential | None = None
        if head:
            assert isinstance(self.out, nn.Conv2d)
            self.out.reset_parameters()  # it is the head's last layer that starts at zero
            self.head = nn.Sequential(norm(head), nn.SiLU(), zero_(nn.Conv2d(head, made, 1)))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        conditioning, context = self.conditioning.attended(log_snr, condition)
        seen = [x, *(wave(frequency * x) for frequency in self.fourier for wave in (torch.sin, torch.cos))]
        if self.values:
            with torch.autocast(x.device.type, enabled=False):
                p = self.values.posterior(x, log_snr)
                seen.append(self.values.embedded(p))
                histogram = self.values.histogram(p)
            conditioning = conditioning + self.values.to_conditioning(histogram)
        h = self._at_full_resolution(self.body(torch.cat(seen, 1), conditioning, context))
        logits = self.inputs * self.values.count if self.values else 0
        first, rest, last, filters = h.split(
            [self.inputs, self.outputs - self.inputs - logits, logits, h.shape[1] - self.outputs], 1
        )
        if self.kernel:
            first = first + self._filtered(x, filters)
        if self.values:
            with torch.autocast(x.device.type, enabled=False):
                last = last + self.values.logits(p, histogram, conditioning.to(p))
        return torch.cat([first, rest, last], 1)

    def _at_full_resolution(self, h: Tensor) -> Tensor:
        if self.head is None:
            return h
        with torch.autocast(h.device.type, enabled=False):  # probabilities of 256 values need more than 8 bits
            h = h if h.dtype == torch.float64 else h.float()
            return self.head(h.contiguous(memory_format=torch.channels_last))  # an element's values are contiguous

    def _filtered(self, x: Tensor, filters: Tensor) -> Tensor:
        """x filtered with a separate filter for each element; filters (B, inputs kernel^2, H, W)."""
        near = functional.unfold(x, self.kernel, padding=self.kernel // 2).view(filters.shape)
        return (filters * near).unflatten(1, (self.inputs, -1)).sum(2)

    @torch.no_grad()
    def set_value_prior(self, log_prior: Tensor) -> None:
        """Sets ln p(v) of the data's values, (values,): the initial logits, and the prior of `self.values`."""
        last = self.out if self.head is None else self.head[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        folded = self.patch**2 if last is self.out else 1
        start = log_prior.to(last.bias).repeat(self.inputs).repeat_interleave(folded)
        end = self.outputs * folded
        last.bias[end - len(start) : end] = start
        if self.values:
            self.values.log_prior.copy_(log_prior)
