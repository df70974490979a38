"""What kinds of data there are. Nothing here imports torch when it is imported: model cards ask it too."""

from typing import Protocol

from undiffuse.domains.domain import Domain
from undiffuse.registry import DOMAINS


class _Facts(Protocol):
    @property
    def domain(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def domain_of(facts: _Facts) -> Domain:
    """The domain of a data set, or of what a model knows of one.

    Raises UsageError for a domain that there is not, ValueError for rows of a shape that it cannot have.
    """
    domain: Domain = DOMAINS.find(facts.domain)(tuple(facts.shape))
    return domain


__all__ = ["DOMAINS", "Domain", "domain_of"]
