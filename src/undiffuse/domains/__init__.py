"""The kinds of data. Importing this package does not import torch, because model cards use it."""

import inspect
from typing import Any, Protocol

from undiffuse.domains.domain import Domain
from undiffuse.names import shown
from undiffuse.registry import DOMAINS


class _Facts(Protocol):
    @property
    def domain(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def sound(self) -> dict[str, Any] | None: ...


def domain_of(facts: _Facts) -> Domain:
    """The domain of a data set, or of the facts that a model has about one.

    Raises UsageError for an unknown domain, ValueError for a row shape or facts about sound that it does not allow.
    """
    kind, sound = DOMAINS.find(facts.domain), facts.sound or {}
    try:
        inspect.signature(kind).bind(facts.shape, **sound)
    except TypeError as error:
        raise ValueError(f"sound = {shown(facts.sound)} does not fit {facts.domain}: {error}") from None
    domain: Domain = kind(tuple(facts.shape), **sound)
    return domain


__all__ = ["DOMAINS", "Domain", "domain_of"]
