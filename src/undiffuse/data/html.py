"""A recipe in a page: JSON in a script element that no browser runs, the last thing in the file."""

import os
from typing import BinaryIO

BEGIN = b'<script type="application/json" id="undiffuse">'
END = b"</script>\n</html>\n"
CLOSING = b"</html>\n"


def with_script(file: BinaryIO, text: str) -> None:
    """Adds JSON to a finished page that ends in </html> and a line feed, opened to read and write.

    The only "<" that JSON can have are in its strings, where they are written as escapes: nothing ends the element.
    """
    file.seek(-len(CLOSING), os.SEEK_END)
    assert file.read() == CLOSING, "a page of undiffuse ends so"
    file.seek(-len(CLOSING), os.SEEK_END)
    file.write(BEGIN + text.replace("<", "\\u003c").encode() + END)


def script_of(file: BinaryIO, longest: int) -> str | None:
    """What `with_script` has added, None if the file does not end in it; a text of more than `longest` bytes is none.

    Reads only the end of the file.
    """
    most = len(BEGIN) + 6 * longest + len(END)  # six bytes to an escape
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - most))
    _, begin, text = file.read().rpartition(BEGIN)
    if not begin or not text.endswith(END):
        return None
    return text.removesuffix(END).decode()
