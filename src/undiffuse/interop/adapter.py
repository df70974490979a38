"""undiffuse's networks inside diffusers' pipelines.

    import undiffuse.interop.adapter  # first: diffusers does not import a module that a folder names
    from diffusers import DDIMPipeline
    pipeline = DDIMPipeline.from_pretrained("a folder written by undiffuse export")

The names imported from diffusers are needed here: it looks for its base classes in the module of the class.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from undiffuse.build import make_denoiser, make_network
from undiffuse.card import label_facts
from undiffuse.conditions import Condition, Labels
from undiffuse.config import read_config
from undiffuse.errors import UsageError
from undiffuse.networks import current_name
from undiffuse.process import expand

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput
except ImportError as error:
    raise UsageError('the adapter runs in diffusers, which is missing: pip install "undiffuse[diffusers]"') from error


HALVES = (torch.float16, torch.bfloat16)


class Adapter(ModelMixin, ConfigMixin):
    """A model of undiffuse with the interface of a `UNet2DModel`: it predicts v, which is finite at every noise level.

    In float16 and bfloat16 its layers compute as they do in training: tables, frequencies, the modules for values and
    everything between the network's output and v stay in float32.

    Args:
        card: `config` and `data` of a model.json; the process must be a table.
        sample_size, in_channels, out_channels: read by pipelines.
    """

    _keep_in_fp32_modules = ["head", "values"]  # noqa: RUF012  (diffusers wants a list)

    @register_to_config
    def __init__(
        self,
        card: dict[str, Any],
        sample_size: int | tuple[int, int],
        in_channels: int,
        out_channels: int,
    ):
        super().__init__()
        config = read_config(card["config"])
        default = torch.get_default_dtype()
        torch.set_default_dtype(
            torch.float32
        )  # from_pretrained sets half precision, and buffers are not read from files
        try:
            share = card["data"]["class_share"]
            self.classes = len(share)
            self.network = make_network(config, in_channels, label_facts(share) if share else None)
            self.denoiser = make_denoiser(config, self._output)
        finally:
            torch.set_default_dtype(default)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Adapter":
        """Moves and converts; tables, frequencies and the modules above stay float32, since no half can hold them."""
        modules = [module for name, module in self.network.named_children() if name in self._keep_in_fp32_modules]
        exact = [tensor for module in modules for tensor in module.parameters()]
        before = [tensor.data for tensor in (*exact, *self.buffers())]
        super()._apply(fn, recurse)  # type: ignore[misc]
        exact = [tensor for module in modules for tensor in module.parameters()]
        for tensor, old in zip((*exact, *self.buffers()), before, strict=True):
            if tensor.dtype in HALVES:
                tensor.data = old.to(tensor.device, torch.float32)
        return self

    def _fix_state_dict_keys_on_load(self, state_dict: dict[str, Tensor]) -> None:
        """Diffusers' hook for names that have changed: those in adapters exported by version 0.1."""
        for name in [name for name in state_dict if current_name(name) != name]:
            state_dict[current_name(name)] = state_dict.pop(name)

    def _output(self, x: Tensor, log_snr: Tensor, condition: Condition | None) -> Tensor:
        """The network's output in the type of x, whatever its own type."""
        half = next(self.network.parameters()).dtype
        with torch.autocast(x.device.type, half if half in HALVES else torch.bfloat16, enabled=half in HALVES):
            output = self.network(x, log_snr, condition)
        if half is torch.float16 and not output.isfinite().all():  # some networks exceed float16's 65504
            weights = {name: parameter.to(x.dtype) for name, parameter in self.network.named_parameters()}
            output = functional_call(self.network, weights, (x, log_snr, condition))
        return output.to(x.dtype)

    def _condition(self, labels: Tensor | None, count: int, device: torch.device) -> Labels | None:
        if labels is not None:
            return Labels(labels, self.classes)
        return Labels(torch.full((count,), self.classes, device=device), self.classes) if self.classes else None

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """v at the timestep, one for the batch or one per sample; `class_labels` int64 (B,), None for any class.

        Raises ValueError for labels of a model without classes."""
        process = self.denoiser.process
        t = process.schedule.time_of(torch.as_tensor(timestep, device="cpu").double() + 1)
        x_t = sample.float() if sample.dtype in HALVES else sample
        prediction, level = (
            self.denoiser(x_t, t, self._condition(class_labels, len(x_t), x_t.device)),
            process.noise_level(t),
        )
        v = expand(level.alpha, x_t) * prediction.eps - expand(level.sigma, x_t) * prediction.x0
        v = v.to(sample.dtype)
        return UNet2DOutput(sample=v) if return_dict else (v,)
