"""The known pixels of a picture to be painted, passed to the network with its condition.

A model with `network.inpaint` takes the known pixels and their mask as input channels beside x_t (GLIDE, Nichol et al.
2022, section 4.4). A network that is given none takes nothing to be known, which is how samples are drawn.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from undiffuse.conditions.composition import Composition, Request
from undiffuse.conditions.condition import Condition, Rows
from undiffuse.devices import sent


@dataclass(frozen=True)
class Known:
    """A condition, or None, with known pixels: what training and sampling use of a `Condition`.

    Attributes:
        condition: that of the same samples.
        planes: float (B, C + 1, H, W): x_0 where it is known and 0 elsewhere; 0 where it is known and 1 elsewhere.
    """

    condition: Condition | None
    planes: Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.planes)

    def __getitem__(self, rows: Rows) -> "Known":
        """The same for these rows."""
        return Known(None if self.condition is None else self.condition[rows], self.planes[rows])

    def joined(self, *others: "Known") -> "Known":
        """These rows, then those of each of `others`."""
        planes = torch.cat([self.planes, *(other.planes for other in others)])
        if self.condition is None:
            return Known(None, planes)
        return Known(self.condition.joined(*(cast(Condition, other.condition) for other in others)), planes)

    def to(self, device: torch.device) -> "Known":
        """The same on `device`, without waiting for the copy."""
        return Known(None if self.condition is None else self.condition.to(device), sent(self.planes, device))

    def dropped(self, where: Tensor | None = None) -> "Known":
        """The same without the condition where `where` is true; what is known stays."""
        return Known(None if self.condition is None else self.condition.dropped(where), self.planes)


def planes_of(x0: Tensor, repaint: Tensor) -> Tensor:
    """The planes of `Known` for pictures (B, C, H, W), to be painted where `repaint`, bool (B, 1, H, W), is true."""
    unknown = repaint.to(x0)
    return torch.cat([x0 * (1 - unknown), unknown], 1)


def nothing_known(x: Tensor) -> Tensor:
    """The planes of pictures like x (B, C, H, W) of which nothing is known."""
    return torch.cat([torch.zeros_like(x), torch.ones_like(x[:, :1])], 1)


def knowing(condition: Condition | None, planes: Tensor) -> Condition:
    """`Known`, typed as a condition: objectives, samplers and guidance only pass it on to the network."""
    return cast(Condition, Known(condition, planes))


def known_pixels(condition: Condition | None, x0: Tensor, repaint: Tensor) -> Condition:
    """A condition with the pixels of x_0 (B, C, H, W) that are known: where `repaint`, bool (B, 1, H, W), is false."""
    return knowing(condition, planes_of(x0, repaint))


def known_of_each(request: Request | None, x0: Tensor, repaint: Tensor) -> Request:
    """`known_pixels` of a condition, or of each in a composition."""
    if isinstance(request, Composition):
        negative = None if request.negative is None else known_pixels(request.negative, x0, repaint)
        return Composition(tuple(known_pixels(part, x0, repaint) for part in request.parts), negative, request.weights)
    return known_pixels(request, x0, repaint)


def without_known(condition: Condition | None) -> tuple[Condition | None, Tensor | None]:
    """The condition itself, and the planes if it has any."""
    if isinstance(condition, Known):
        return condition.condition, condition.planes
    return condition, None
