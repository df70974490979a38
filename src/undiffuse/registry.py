"""The names that people choose by, and where what they mean is defined. Imports no torch.

To add one, write one file and one line here; or, outside of the package, `SAMPLERS.add("mine", Sampler("my.module:step"))`.
Configuration, command line, help texts, completion and "did you mean" all read these lists. A name is only ever looked up
here: nothing that a file contains is imported.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from undiffuse.errors import UsageError
from undiffuse.names import did_you_mean, listed, shown

E = TypeVar("E")


def located(target: str) -> Any:
    """The object that "package.module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Mapping[str, E], Generic[E]):
    """Names of one kind of thing, in order, and an entry for each: "package.module:attribute", or what holds one."""

    def __init__(self, kind: str, entries: Mapping[str, E]):
        self.kind, self._entries = kind, dict(entries)

    def __getitem__(self, name: str) -> E:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, entry: E) -> None:
        """Adds a name for this process. Raises ValueError where there is one already."""
        if name in self._entries:
            raise ValueError(f"there is a {self.kind} {name!r} already")
        self._entries[name] = entry

    def check(self, name: str) -> str:
        """`name`, if there is such a thing. Raises UsageError, naming the nearest, if not."""
        if name not in self._entries:
            hint = did_you_mean(str(name), self, "")
            choices = f"choose from {listed(self)}" if not hint else f"{hint} There are {listed(self)}"
            raise UsageError(f"no {self.kind} {shown(name)}: {choices}")
        return name

    def find(self, name: str) -> Any:
        """What an entry that is a place, "package.module:attribute", stands for. Raises UsageError as `check`."""
        return located(str(self._entries[self.check(name)]))
