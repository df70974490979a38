"""The kinds of data. Importing this package does not import torch, because model cards use it."""

from typing import Protocol

from undiffuse.domains.domain import Domain
from undiffuse.registry import DOMAINS


class _Facts(Protocol):
    @property
    def domain(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def domain_of(facts: _Facts) -> Domain:
    """The domain of a data set, or of the facts that a model has about one.

    Raises UsageError for an unknown domain, ValueError for a row shape that it does not allow.
    """
    domain: Domain = DOMAINS.find(facts.domain)(tuple(facts.shape))
    return domain


__all__ = ["DOMAINS", "Domain", "domain_of"]
