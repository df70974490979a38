"""The comment of a WAV file, which is a list of chunks: RIFF, its size, "WAVE", then each with a name and a size."""

import struct
from typing import BinaryIO

HEADER = struct.Struct("<4sI")


def with_comment(file: BinaryIO, text: str) -> None:
    """Adds a comment (LIST INFO ICMT, Microsoft & IBM 1991) to the end of a finished file, opened to read and write."""
    content = text.encode() + b"\0"
    comment = b"INFO" + HEADER.pack(b"ICMT", len(content)) + content + b"\0" * (len(content) % 2)
    file.seek(0, 2)
    file.write(HEADER.pack(b"LIST", len(comment)) + comment)
    size = file.tell() - HEADER.size
    file.seek(0)
    file.write(HEADER.pack(b"RIFF", size))


def comment_of(file: BinaryIO, longest: int) -> str | None:
    """The first comment of a file, None if it has none. Raises ValueError for a damaged one, and for a list of facts
    longer than `longest` bytes by much, which is not read."""
    file.seek(HEADER.size + 4)
    while len(head := file.read(HEADER.size)) == HEADER.size:
        name, size = HEADER.unpack(head)
        if name != b"LIST":
            file.seek(size + size % 2, 1)
            continue
        if size > 2 * longest:
            raise ValueError(f"a list of facts of {size:,} bytes is too long")
        facts = file.read(size + size % 2)
        at = 4
        while facts[:4] == b"INFO" and at + HEADER.size <= size:
            key, length = HEADER.unpack_from(facts, at)
            at += HEADER.size
            if at + length > len(facts):
                raise ValueError("the list of facts is cut off")
            if key == b"ICMT":
                return facts[at : at + length].rstrip(b"\0").decode()
            at += length + length % 2
    return None
