"""Several conditions of a sample that one network takes together, such as a class and a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from undiffuse.conditions.condition import Condition, Encoders, Rows
from undiffuse.conditions.sentences import drawn
from undiffuse.registry import CONDITIONS


@dataclass(frozen=True)
class Several:
    """Conditions of the same B samples; a `Condition`.

    Attributes:
        parts: the name of a part's encoder -> the part.
    """

    parts: Mapping[str, Condition]

    kind: ClassVar[str] = "several"

    def __len__(self) -> int:
        """B."""
        return len(next(iter(self.parts.values())))

    def __getitem__(self, rows: Rows) -> "Several":
        """The conditions of these rows, in this order."""
        return Several({name: part[rows] for name, part in self.parts.items()})

    def drawn(self, rows: np.ndarray, u: np.ndarray) -> "Several":
        """As `undiffuse.conditions.sentences.drawn`."""
        return Several({name: drawn(part, rows, u) for name, part in self.parts.items()})

    def joined(self, *others: "Several") -> "Several":
        """These conditions, then those of each of `others`."""
        joined = {name: part.joined(*(other.parts[name] for other in others)) for name, part in self.parts.items()}
        return Several(joined)

    def to(self, device: torch.device) -> "Several":
        """The same on `device`, copied asynchronously."""
        return Several({name: part.to(device) for name, part in self.parts.items()})

    def dropped(self, where: Tensor | None = None) -> "Several":
        """The same, with all parts unconditional where `where`, bool (B,), is true; None: everywhere."""
        return Several({name: part.dropped(where) for name, part in self.parts.items()})

    def without(self, name: str, where: Tensor | None = None) -> "Several":
        """The same, with one part unconditional where `where` is true; None: everywhere."""
        return Several({**self.parts, name: self.parts[name].dropped(where)})

    def facts(self) -> dict[str, Any]:
        """Name of the encoder -> `kind` and `facts` of the part."""
        return {name: {"kind": part.kind, "facts": part.facts()} for name, part in self.parts.items()}

    @classmethod
    def encoders(cls, facts: dict[str, Any]) -> Encoders:
        """Those of all parts; each gets its own part (`part_for`)."""
        found = {name: kind_of(one).encoders(one["facts"])[name] for name, one in facts.items()}
        if not found:
            raise ValueError("there are no conditions")
        return found

    @classmethod
    def for_samples(cls, facts: dict[str, Any], numbers: np.ndarray) -> "Several":
        """The sentences alone, if there are any, since the default class of a number need not go with its sentence;
        else all parts."""
        parts = {name: kind_of(one).for_samples(one["facts"], numbers) for name, one in facts.items()}
        if "sentence" not in parts:
            return cls(parts)
        return cls({name: part if name == "sentence" else part.dropped() for name, part in parts.items()})


def kind_of(one: Any) -> type[Condition]:
    """The class of a part, from its facts."""
    kind: type[Condition] = CONDITIONS.find(one["kind"])
    return kind


def part_for(condition: Condition | None, name: str) -> Condition | None:
    """The input of the encoder of this name: its part of `Several`, or the condition itself."""
    return condition.parts[name] if isinstance(condition, Several) else condition
