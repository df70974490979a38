"""Several conditions of the same samples at once, and one to avoid."""

from dataclasses import dataclass

import torch

from undiffuse.conditions.condition import Condition, Rows


@dataclass(frozen=True)
class Composition:
    """Conditions that guidance composes (`undiffuse.guidance.composed`); no network takes it.

    It has the part of `Condition` that sampling uses: rows, devices, `dropped`.

    Attributes:
        parts: one or more, of the same samples.
        negative: the condition to move away from, instead of the unconditional one.
        weights: of the parts, relative to the scale of guidance; () for 1 each.
    """

    parts: tuple[Condition, ...]
    negative: Condition | None = None
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts or len({len(part) for part in (*self.parts, self.away)}) != 1:
            raise ValueError("a composition needs one condition or more, all of the same number of samples")
        if len(self.weights) not in (0, len(self.parts)):
            raise ValueError(f"{len(self.weights)} weights for {len(self.parts)} conditions")

    def __len__(self) -> int:
        """B."""
        return len(self.parts[0])

    def __getitem__(self, rows: Rows) -> "Composition":
        """The composition for these rows."""
        negative = None if self.negative is None else self.negative[rows]
        return Composition(tuple(part[rows] for part in self.parts), negative, self.weights)

    def to(self, device: torch.device) -> "Composition":
        """The same on `device`."""
        negative = None if self.negative is None else self.negative.to(device)
        return Composition(tuple(part.to(device) for part in self.parts), negative, self.weights)

    def dropped(self) -> Condition:
        """The unconditional condition of the same samples."""
        return self.parts[0].dropped()

    def scales(self, scale: float) -> list[float]:
        """The scale of each part."""
        return [scale * weight for weight in self.weights or [1.0] * len(self.parts)]

    @property
    def away(self) -> Condition:
        """The condition that guidance moves away from."""
        return self.dropped() if self.negative is None else self.negative


Request = Condition | Composition
"""A condition of samples, or several to compose."""


def parts_of(request: Request | None) -> tuple[Condition | None, ...]:
    """The conditions of a composition; of anything else, itself alone."""
    return request.parts if isinstance(request, Composition) else (request,)
