"""Removes metadata that Pillow refuses from PNG files, and puts a text into them."""

import os
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
ORIENTATION = b"eXIf"
HEADER_END = len(SIGNATURE) + 25
ITXT = b"iTXt"
TEXTS = (ITXT, b"tEXt", b"zTXt")
UNCOMPRESSED = b"\0\0\0\0\0"  # end of the keyword; not compressed, by no method; no language, no translated keyword
MOST_CHUNKS = 1000  # looked at before the picture


def without_metadata(data: bytes) -> bytes | None:
    """A PNG file with only the chunks of its picture, and its EXIF; None if it is no PNG or has nothing to remove.

    Pillow refuses a file whose texts or colour profile exceed a megabyte (its guard against decompression bombs, which
    this does not change) or do not match their checksum; the picture needs none of them. Chunks: the PNG
    specification, section 5.3.
    """
    if not data.startswith(SIGNATURE):
        return None
    kept, start = [SIGNATURE], len(SIGNATURE)
    while start + 12 <= len(data):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 12 + length
        if kind in PICTURE or (kind == ORIENTATION and _is_whole(data[start:end])):
            kept.append(data[start:end])
        start = end
    bare = b"".join(kept)
    return bare if len(bare) < len(data) else None


def _is_whole(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]


def with_text(png: bytes, keyword: str, text: str) -> bytes:
    """The PNG file with `text` under `keyword` in an iTXt chunk after its header; its picture is untouched.

    Raises ValueError for anything but a PNG. Layout: the PNG specification, section 11.3.3.4.
    """
    if not png.startswith(SIGNATURE):
        raise ValueError("it is not a PNG file")
    body = ITXT + keyword.encode("latin-1") + UNCOMPRESSED + text.encode()
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return png[:HEADER_END] + chunk + png[HEADER_END:]


def text_of(file: BinaryIO, keyword: str, longest: int) -> str | None:
    """The text under `keyword` before the picture of a PNG file, as `with_text` writes it; None where there is none.

    Raises ValueError for a text that is damaged, compressed or longer than `longest` bytes: nothing is unpacked.
    """
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return None
    sought = keyword.encode("latin-1") + b"\0"
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind in (b"IDAT", b"IEND"):
            break
        body = file.read(min(length, len(sought)))
        if kind not in TEXTS or body != sought:
            file.seek(length - len(body) + 4, os.SEEK_CUR)
            continue
        if length > len(keyword) + len(UNCOMPRESSED) + longest:
            raise ValueError(f"it takes {length:,} bytes, more than the {longest:,} that are read")
        body += file.read(length - len(body))
        if not _is_whole(head + body + file.read(4)):
            raise ValueError("its checksum is wrong")
        if kind != ITXT or not body.startswith(keyword.encode("latin-1") + UNCOMPRESSED):
            raise ValueError("it is not stored as undiffuse stores it: another program has written the file since")
        return body[len(keyword) + len(UNCOMPRESSED) :].decode()
    return None
