"""Names and values as users give them: finding the one that was meant, and quoting long ones in errors."""

import difflib
import re
import reprlib
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.errors import UsageError

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 80  # characters of a value that an error quotes
MOST = 10  # names that an error lists

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 3, LONGEST - 10, LONGEST - 10


def cut(text: str, longest: int = LONGEST) -> str:
    """`text` on one line, truncated to `longest` characters."""
    text = " ".join(text[: 4 * longest].split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def shown(value: Any) -> str:
    """`value` as quoted in errors: its repr, shortened."""
    try:
        return cut(_repr.repr(value))
    except ValueError:  # an int of more digits than Python writes
        return f"a number of {value.bit_length()} bits"


def command(*words: str | Path) -> str:
    """A command to suggest, ready to be pasted into a shell: `words` are those after "undiffuse", quoted as needed.

    A `Path` that begins with a dash is written with ./ before it, so that it is not taken for an option.
    """
    ready = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join(["undiffuse", *ready])


def counted(count: int, what: str) -> str:
    """1 step, 2 steps."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def listed(names: Iterable[str]) -> str:
    """The first of `names`, and how many there are if these are not all."""
    names = list(names)
    more = f" ... ({len(names):,} in all)" if len(names) > MOST else ""
    return ", ".join(cut(name, 40) for name in names[:MOST]) + more


def format_shape(shape: Iterable[int]) -> str:
    """A shape as text, such as 28x28x1."""
    return "x".join(map(str, shape))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The one of `known` most like `name`, or None."""
    close = difflib.get_close_matches(name[:LONGEST], list(known), 1, cutoff)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """ "did you mean ...?" if one of `known` is like `name`, else `otherwise`."""
    close = nearest(name, known)
    return f"did you mean {cut(close)}?" if close else otherwise


def one_of(kind: str, name: str, known: Iterable[str]) -> str:
    """`name`, if it is one of `known`, names of a `kind`. Raises UsageError, naming the nearest and all of them."""
    known = list(known)
    if name not in known:
        close, choices = did_you_mean(str(name), known, ""), f"choose from {', '.join(known)}"
        raise UsageError(f"no {kind} {shown(name)}: {f'{close} Else {choices}' if close else choices}")
    return name


def choose(name: str | int, names: Sequence[str], what: str = "class") -> int:
    """The index in `names` that `name` means: an int is the index; a str is matched exactly, else ignoring case if the
    match is unique, else as a number. Raises UsageError if none or several match."""
    if not isinstance(name, int):
        for same in (str, _folded):
            found = [index for index, known in enumerate(names) if same(known) == same(name)]
            if len(found) == 1:
                return found[0]
            if found:
                raise UsageError(
                    f"{what} {shown(name)} may be any of "
                    + listed(f"{cut(names[index], 30)!r} (number {index})" for index in found)
                    + ": write it exactly, or give its number"
                )
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise UsageError(f"no {what} {shown(name)}; {did_you_mean(name, names, f'there are {listed(names)}.')}")
    if 0 <= int(name) < len(names):
        return int(name)
    raise UsageError(f"no {what} {shown(name)}: the numbers are 0 to {len(names) - 1}")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def fault(error: "ValidationError", *within: str) -> str:
    """The first error that pydantic found `within` a key, as "key = value: what it should be", in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(cut(str(part), 40) for part in (*within, *first["loc"]))
    whole = first["type"] in ("missing", "extra_forbidden", "value_error") and isinstance(first["input"], dict)
    given = "" if whole else f" = {shown(first['input'])}"
    message = first["msg"].removeprefix("Value error, ")
    message = re.sub("a valid dictionary.*", "a table", message).replace("a valid tuple", "a list")
    separator = ": " if key or given else ""
    return f"{key}{given}{separator}{cut(message[:1].lower() + message[1:], 200)}"
