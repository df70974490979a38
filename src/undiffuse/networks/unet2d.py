"""The U-Net of DDPM (Ho et al. 2020) as in diffusers' `UNet2DModel`: weights transfer without conversion.

Modules have the names of diffusers' state dict. Like all networks here it takes the log-SNR, but it is conditioned on
timesteps: it holds the log-SNRs of the table it is trained on, and looks up the timestep of a log-SNR.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.conditions import Condition, check_given
from undiffuse.conditions.labels import index_of
from undiffuse.networks.embedding import zero_
from undiffuse.networks.unet import convolution_weights

ACTIVATIONS = {"silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}
Positive = Annotated[int, Field(ge=1, le=65_536)]


class Options(BaseModel):
    """The options of `UNet2DModel` besides width, depth, attention and dropout, with its names and defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    add_attention: bool = True
    attention_head_dim: Positive | None = 8
    attn_norm_num_groups: Positive | None = None
    center_input_sample: bool = False
    class_embed_type: None = None
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    flip_sin_to_cos: bool = True
    freq_shift: float = Field(0, ge=-1e6, le=1e6)
    mid_block_scale_factor: float = Field(1, ge=1e-6, le=1e6)
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    norm_eps: float = Field(1e-5, ge=1e-12, le=1)
    norm_num_groups: Positive = 32
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    time_embedding_dim: Positive | None = None
    time_embedding_type: Literal["positional"] = "positional"
    upsample_type: Literal["conv", "resnet"] = "conv"


def _halve(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 2)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class ResnetBlock(nn.Module):
    """(B, C_in, H, W), embedding (B, E) -> (B, C_out, H', W'), divided by `scale`; `resample` comes before conv1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        options: Options,
        scale: float = 1.0,
        resample: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        groups, eps = options.norm_num_groups, options.norm_eps
        self.scale_shift = options.resnet_time_scale_shift == "scale_shift"
        self.scale, self.resample, self.nonlinearity = scale, resample, ACTIVATIONS[options.act_fn]()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs, eps), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, 2 * outputs if self.scale_shift else outputs)
        self.norm2, self.dropout = nn.GroupNorm(groups, outputs, eps), nn.Dropout(dropout)
        self.conv2 = zero_(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.conv_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.nonlinearity(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        shift = self.time_emb_proj(self.nonlinearity(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + shift)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        return (self.conv_shortcut(x) + h) / self.scale


class Attention2D(nn.Module):
    """Multi-head self-attention over the pixels of (B, C, H, W), with a residual, divided by `scale`."""

    def __init__(self, channels: int, groups: int | None, options: Options, scale: float = 1.0):
        super().__init__()
        width = options.attention_head_dim or channels
        if width > channels:
            raise ValueError(f"attention_head_dim = {width} is more than the {channels} channels of a stage")
        self.heads, self.scale = channels // width, scale
        self.group_norm = nn.GroupNorm(groups, channels, options.norm_eps) if groups else nn.Identity()
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, self.heads * width) for _ in range(3))
        self.to_out = nn.ModuleList([zero_(nn.Linear(self.heads * width, channels))])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        query, key, value = (
            layer(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        h = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return (x + self.to_out[0](h).transpose(1, 2).reshape(x.shape)) / self.scale


class Resample(nn.Module):
    """Halves (a strided convolution) or doubles (nearest neighbour, then a convolution) the resolution."""

    def __init__(self, channels: int, direction: Literal["down", "up"], padding: int = 1):
        super().__init__()
        self.up, self.pad = direction == "up", padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if self.up else 2, padding=padding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.up:
            x = _double(x)
        return self.conv(functional.pad(x, (0, 1, 0, 1)) if self.pad else x)


class Resolution(nn.Module):
    """The residual blocks at one resolution, each followed by attention or nothing."""

    def __init__(self, resnets: list[ResnetBlock], attentions: list[nn.Module]):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)


class Down(Resolution):
    """A stage on the way down, which appends its outputs to `skips`."""

    def __init__(self, resnets: list[ResnetBlock], attentions: list[nn.Module], downsamplers: list[nn.Module]):
        super().__init__(resnets, attentions)
        self.downsamplers = nn.ModuleList(downsamplers)

    def forward(self, x: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, embedding))
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, embedding)
            skips.append(x)
        return x


class Middle(Resolution):
    """A residual block, attention, a residual block."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, embedding)), embedding)


class Up(Resolution):
    """A stage on the way up, which consumes `skips`."""

    def __init__(self, resnets: list[ResnetBlock], attentions: list[nn.Module], upsamplers: list[nn.Module]):
        super().__init__(resnets, attentions)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, x: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(torch.cat([x, skips.pop()], 1), embedding))
        for upsampler in self.upsamplers:
            x = upsampler(x, embedding)
        return x


class UNet2D(nn.Module):
    """(B, inputs, H, W), log-SNR (B,), `Labels` or None -> (B, outputs, H, W).

    H and W must be multiples of 2^(stages - 1). A sample of any class gets no class embedding; without classes the
    condition is None.

    Args:
        inputs, outputs: channels of the image and of the output.
        log_snr: (T + 1,), decreasing: the log-SNRs at steps 0 .. T of the table it is trained on; 0 is the data.
        channels, blocks, attention, dropout: as in `UNet`.
        classes: how many classes there are; 0 for none.
        options: see `Options`.

    Raises ValueError where the options do not fit the channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        log_snr: Tensor,
        *,
        channels: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        options: Options,
        classes: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if channels[0] // 2 - options.freq_shift <= 0:
            raise ValueError(f"freq_shift = {options.freq_shift:g} leaves {channels[0]} channels no frequencies")
        self.options, self.width, self.classes = options, channels[0], classes
        self.register_buffer("log_snr", log_snr.float(), persistent=False)
        self.log_snr: Tensor
        width, groups = options.time_embedding_dim or 4 * channels[0], options.norm_num_groups
        self.time_embedding = nn.Sequential(
            OrderedDict(linear_1=nn.Linear(channels[0], width), act=nn.SiLU(), linear_2=nn.Linear(width, width))
        )
        self.class_embedding = nn.Embedding(classes, width) if classes else None
        resnet = partial(ResnetBlock, embedding=width, dropout=dropout, options=options)

        def attend(stage: int) -> nn.Module:
            return Attention2D(channels[stage], groups, options) if stage in attention else nn.Identity()

        def resample(stage: int, direction: Literal["down", "up"]) -> nn.Module:
            kind = options.downsample_type if direction == "down" else options.upsample_type
            here = channels[stage]
            if kind == "conv" or stage not in attention:  # diffusers offers the choice only with attention
                return Resample(here, direction, options.downsample_padding if direction == "down" else 1)
            return resnet(here, here, resample=_halve if direction == "down" else _double)

        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        now, last, skips = channels[0], len(channels) - 1, [channels[0]]
        for stage, here in enumerate(channels):
            resnets = [resnet(now if k == 0 else here, here) for k in range(blocks)]
            downsamplers = [resample(stage, "down")] if stage < last else []
            self.down_blocks.append(Down(resnets, [attend(stage) for _ in resnets], downsamplers))
            skips += [here] * (blocks + len(downsamplers))
            now = here
        scale = options.mid_block_scale_factor
        middle = options.attn_norm_num_groups or (groups if options.resnet_time_scale_shift == "default" else None)
        attended = Attention2D(now, middle, options, scale) if options.add_attention else nn.Identity()
        self.mid_block = Middle([resnet(now, now, scale=scale) for _ in range(2)], [attended])
        for stage, here in reversed(list(enumerate(channels))):
            resnets = [resnet((now if k == 0 else here) + skips.pop(), here) for k in range(blocks + 1)]
            upsamplers = [resample(stage, "up")] if stage else []
            self.up_blocks.append(Up(resnets, [attend(stage) for _ in resnets], upsamplers))
            now = here
        self.conv_norm_out = nn.GroupNorm(groups, now, options.norm_eps)
        self.conv_out = zero_(nn.Conv2d(now, outputs, 3, padding=1))

    @property
    def least_log_snr(self) -> float:
        """The lowest log-SNR that it takes: the last of its table."""
        return self.log_snr.min().item()

    def timestep(self, log_snr: Tensor) -> Tensor:
        """The timestep k in [0, T - 1] at (B,) log-SNRs: that of the step k + 1, fractional between two steps.

        Interpolates alpha_bar linearly between steps, as tables do. Stays on the tensor's own device.
        """
        above = (self.log_snr >= log_snr[:, None]).sum(1).clamp(1, len(self.log_snr) - 1)
        sign = torch.where(log_snr < 0, 1.0, -1.0)  # the smaller of sigma^2 and alpha^2 is more precise
        here, start, end = (
            torch.sigmoid(sign * value) for value in (log_snr, self.log_snr[above - 1], self.log_snr[above])
        )
        position = above - ((here - end) / (start - end)).nan_to_num()
        nearest = position.round()  # a table's own steps are exact, in spite of float32
        return torch.where((position - nearest).abs() < 1e-3, nearest, position).clamp(1, len(self.log_snr) - 1) - 1

    def sinusoids(self, timestep: Tensor) -> Tensor:
        """float32 (B, channels[0]): sines and cosines of the timestep (Vaswani et al. 2017), as in DDPM."""
        half = self.width // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device)
        angles = timestep[:, None].float() * torch.exp(exponent / (half - self.options.freq_shift))
        parts = [angles.sin(), angles.cos()]
        waves = torch.cat(parts[::-1] if self.options.flip_sin_to_cos else parts, 1)
        return functional.pad(waves, (0, self.width % 2))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        check_given(condition, self.class_embedding is not None)
        if self.options.center_input_sample:
            x = 2 * x - 1
        embedding = self.time_embedding(self.sinusoids(self.timestep(log_snr)).to(x.dtype))
        if self.class_embedding is not None and condition is not None:
            labels = index_of(condition, self.classes)
            known = (labels < self.classes)[:, None]
            embedding = embedding + known * self.class_embedding(labels.clamp(max=self.classes - 1))
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x = down(x, embedding, skips)
        x = self.mid_block(x, embedding)
        for up in self.up_blocks:
            x = up(x, embedding, skips)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of all convolutions."""
        return convolution_weights(self)
