"""Removes metadata that Pillow refuses from PNG files."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
ORIENTATION = b"eXIf"


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
