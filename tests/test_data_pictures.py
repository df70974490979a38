"""What is read from picture files: bits, transparency, orientation, scaling; and what spoilt bytes do."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from undiffuse import data
from undiffuse.data import pixels, policy
from undiffuse.data.png import SIGNATURE
from undiffuse.errors import UndiffuseError

pytestmark = pytest.mark.usefixtures("own_cache")


def read(raw: bytes) -> np.ndarray:
    """The picture in a file of these bytes, at its own size."""
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(policy.decode(io.BytesIO(raw)))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png(shape: tuple[int, int], depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG by its specification: `rows` are the packed pixels, each row after a filter byte 0."""
    height, width = shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return SIGNATURE + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(shape: tuple[int, int], bits: list[int], photometric: int, pixels: bytes) -> bytes:
    """An uncompressed little-endian TIFF of one strip, by its specification."""
    height, width = shape
    samples = struct.pack(f"<{len(bits)}H", *bits)
    start = 8 + 2 + 9 * 12 + 4
    inline = len(samples) <= 4
    tags = [(256, width), (257, height), (258, None), (259, 1), (262, photometric), (273, None), (277, len(bits))]
    tags += [(278, height), (279, len(pixels))]
    ifd = struct.pack("<H", len(tags))
    for tag, value in tags:
        if tag == 258:
            ifd += struct.pack("<HHI", tag, 3, len(bits)) + (
                samples.ljust(4, b"\0") if inline else struct.pack("<I", start)
            )
        else:
            ifd += struct.pack("<HHII", tag, 4, 1, start + len(samples) if tag == 273 else value)
    return b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", 0) + samples + pixels


def on_white(grey: float, alpha: float) -> float:
    """Grey and alpha from 0 to 1, as 0 to 255."""
    return 255 * (grey * alpha + 1 - alpha)


# Bits and transparency


def test_sixteen_bit_grey_with_alpha_is_laid_on_white() -> None:
    values, alphas = [0x1234, 0xFFFF, 0x8000], [0x0000, 0x4000, 0xC000]
    rows = b"\0" + np.array([values, alphas], ">u2").T.tobytes()
    got = read(png((1, 3), 16, 4, rows))
    assert got.shape == (1, 3)  # stored as grey, so it is grey
    expected = [on_white(value / 65535, alpha / 65535) for value, alpha in zip(values, alphas, strict=True)]
    assert np.abs(got[0] - expected).max() <= 1
    assert policy.header(io.BytesIO(png((1, 3), 16, 4, rows))).grey


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_white(depth: int) -> None:
    """Each value of a depth in turn is the transparent one (some of them for 8 and 16 bits)."""
    full = 2**depth - 1
    for key in range(full + 1) if depth <= 4 else (0, 3, full // 3):
        values = np.array([0, full, key, full // 2])
        packed = np.packbits((values[:, None] >> np.arange(depth)[::-1] & 1).astype(np.uint8)).tobytes()
        got = read(png((1, 4), depth, 0, b"\0" + packed, chunk(b"tRNS", struct.pack(">H", key))))
        expected = np.where(values == key, 255, np.rint(values * 255 / full))
        assert got[0].tolist() == expected.tolist()


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_is_white(depth: int) -> None:
    kind = ">u2" if depth == 16 else ">u1"
    colours = np.array([[0x12, 0x34, 0x56], [0x12, 0x34, 0x57], [0xFF, 0, 0]])
    colours = colours * 256 + 0x7E if depth == 16 else colours
    transparent = chunk(b"tRNS", colours[0].astype(">u2").tobytes())
    got = read(png((1, 3), depth, 2, b"\0" + colours.astype(kind).tobytes(), transparent))
    assert got[0].tolist() == [[255, 255, 255], [0x12, 0x34, 0x57], [255, 0, 0]]


def test_palettes_with_transparency() -> None:
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 100, 0, 0, 0, 200]))
    raw = png((1, 3), 8, 3, b"\0\0\1\2", palette, chunk(b"tRNS", bytes([0, 255, 51])))
    assert read(raw)[0].tolist() == [[255, 255, 255], [0, 100, 0], [204, 204, 244]]


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa", "LA", "RGBA"])
def test_every_mode_with_alpha(mode: str) -> None:
    assert np.asarray(pixels.to_eight_bit(Image.new(mode, (2, 2)))).min() == 255


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV"])
def test_every_colour_space(mode: str) -> None:
    grey = {"CMYK": (0, 0, 0, 127), "YCbCr": (128, 128, 128), "LAB": (137, 128, 128), "HSV": (0, 0, 128)}[mode]
    got = np.asarray(pixels.to_eight_bit(Image.new(mode, (1, 1), grey)))
    assert np.abs(got.astype(int) - 128).max() <= 2


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_cmyk_files(kind: str) -> None:
    """As Adobe stores them in JPEG (inverted) and TIFF."""
    got = read(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind))
    assert np.abs(got.astype(int) - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("kind", ["tga", "bmp"])
def test_unused_alpha_of_zero_is_opaque(kind: str) -> None:
    colour = np.array([[[10, 20, 30], [200, 100, 0]]], np.uint8)
    blank = (
        saved(Image.fromarray(np.dstack([colour, np.zeros((1, 2), np.uint8)])), "tga")
        if kind == "tga"
        else bmp(colour, 0)
    )
    assert np.array_equal(read(blank), colour)
    half = np.dstack([colour, [[255, 0]]]).astype(np.uint8)
    used = saved(Image.fromarray(half), "tga") if kind == "tga" else bmp(colour, half[..., 3])
    assert read(used)[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def bmp(colour: np.ndarray, alpha: object) -> bytes:
    """A BITMAPV4 file of 32 bits with an alpha mask, one row."""
    pixels = np.dstack([colour[..., ::-1], np.broadcast_to(alpha, colour.shape[:2])]).astype(np.uint8).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, colour.shape[1], 1, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    header = header.ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def test_transparent_png_stays_white() -> None:
    """Only formats known for unused alpha: a PNG that is all transparent is meant so."""
    assert read(saved(Image.new("RGBA", (2, 2)), "png")).min() == 255


def test_grey_tiff_of_other_depths() -> None:
    values = np.array([0, 2000, 4095, 1])
    bits = (values[:, None] >> np.arange(12)[::-1] & 1).astype(np.uint8)
    got = read(tiff((1, 4), [12], 1, np.packbits(bits).tobytes()))
    assert got[0].tolist() == np.rint(values * 255 / 4095).tolist()
    sixteen = np.array([0, 30000, 65535], "<u2")
    assert read(tiff((1, 3), [16], 1, sixteen.tobytes()))[0].tolist() == [0, 117, 255]
    assert read(tiff((1, 3), [16], 0, sixteen.tobytes()))[0].tolist() == [255, 138, 0]  # 0 is white
    assert read(tiff((1, 3), [8], 0, bytes([0, 100, 255])))[0].tolist() == [255, 155, 0]


def test_big_endian_sixteen_bits() -> None:
    values = np.array([[0, 30000, 65535]])
    image = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert np.asarray(pixels.to_eight_bit(image))[0].tolist() == [0, 117, 255]
    wide = b"P5\n3 1\n65535\n" + values.astype(">u2").tobytes()
    assert read(wide)[0].tolist() == [0, 117, 255]
    twelve = b"P5\n3 1\n4095\n" + np.array([0, 2000, 4095], ">u2").tobytes()
    assert np.abs(read(twelve)[0] - np.array([0, 2000, 4095]) * 255 / 4095).max() <= 0.51


def test_a_first_frame_smaller_than_its_canvas() -> None:
    """The rest of the canvas has the background's colour (GIF89a, section 18) or, where some is, is transparent."""
    frame = Image.new("P", (2, 2), 1)
    frame.putpalette([255, 0, 0, 0, 0, 255])
    for options, rest in (({}, [255, 0, 0]), ({"transparency": 0}, [255, 255, 255])):
        raw = bytearray(saved(frame, "gif", optimize=False, **options))
        raw[6:8] = (4).to_bytes(2, "little")  # the logical screen is wider than the frame
        assert read(bytes(raw))[0].tolist() == [[0, 0, 255]] * 2 + [rest] * 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [("gif", {"disposal": 2}), ("png", {"disposal": 2}), ("webp", {"lossless": True}), ("tiff", {})],
)
def test_the_first_frame_of_an_animation(kind: str, options: dict) -> None:
    frames = [Image.new("RGBA", (4, 4), colour) for colour in ((255, 0, 0, 255), (0, 0, 255, 255))]
    raw = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert read(raw).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


# Metadata


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, orientation: int) -> None:
    """EXIF 2.3, tag 0x0112: where the stored row 0 and column 0 belong."""
    quarters = np.kron(np.array([[20, 90], [160, 230]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = read(saved(Image.fromarray(quarters).convert("RGB"), kind, exif=exif))[8::16, 8::16, 0]
    upright = {
        1: [[20, 90], [160, 230]],
        2: [[90, 20], [230, 160]],
        3: [[230, 160], [90, 20]],
        4: [[160, 230], [20, 90]],
        5: [[20, 160], [90, 230]],
        6: [[160, 20], [230, 90]],
        7: [[230, 90], [160, 20]],
        8: [[90, 230], [20, 160]],
    }[orientation]
    assert np.abs(got.astype(int) - upright).max() <= 6


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize(
    "exif",
    [
        *[b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\0\0\xff\xff"],
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # the orientation is a text
    ],
)
def test_broken_exif_spoils_no_picture(kind: str, exif: bytes) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    image = Image.fromarray(np.full((9, 8), 77, np.uint8)).convert("RGB")
    assert np.abs(read(saved(image, kind, exif=exif, **options)).astype(int) - 77).max() <= 2


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("what", ["zTXt", "iTXt", "iCCP", "checksum", "XMP"])
def test_long_or_broken_chunks_spoil_no_picture(where: str, what: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8)
    long = zlib.compress(b"x" * 3_000_000)
    extra = {
        "zTXt": chunk(b"zTXt", b"key\0\0" + long) * 3,
        "iTXt": chunk(b"iTXt", b"key\0\1\0\0\0" + long),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + long),
        "iCCP": chunk(b"iCCP", b"key\0\0" + long),
        "checksum": chunk(b"tEXt", b"key\0text")[:-4] + b"0000",
    }[what]
    exif = Image.Exif()
    exif[0x0112] = 3
    raw = saved(Image.fromarray(image), "png", exif=exif)
    place = raw.index(b"IDAT") - 4 if where == "before" else raw.index(b"IEND") - 4
    spoilt = raw[:place] + extra + raw[place:]
    assert np.array_equal(read(spoilt), image[::-1, ::-1])
    assert policy.header(io.BytesIO(spoilt)) == (6, 6, True)


def test_transparency_survives_long_chunks() -> None:
    palette, transparent = chunk(b"PLTE", bytes([255, 0, 0, 0, 100, 0])), chunk(b"tRNS", bytes([0]))
    long = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000)))
    assert read(png((1, 2), 8, 3, b"\0\0\1", long, palette, transparent))[0].tolist() == [[255, 255, 255], [0, 100, 0]]


def test_a_huge_webp_canvas_is_refused_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (8, 8), value) for value in (1, 200)]
    raw = bytearray(saved(frames[0], "webp", save_all=True, append_images=frames[1:]))
    assert raw[12:16] == b"VP8X"
    raw[24:30] = (15_000).to_bytes(3, "little") * 2
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ValueError, match="decompression bombs"):
        read(bytes(raw))


def test_metadata_do_not_open_the_guard_against_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000)))
    raw = saved(Image.new("L", (300, 300)), "png")
    place = raw.index(b"IDAT") - 4
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with pytest.raises(ValueError, match="decompression bomb"):
        read(raw[:place] + text + raw[place:])
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff", "tga"])
def test_truncated_pictures_are_unreadable(kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    raw = saved(image, kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ValueError, match=r"\w"):
            read(raw[: int(share * len(raw))])


def test_a_truncated_png_with_long_texts_is_unreadable() -> None:
    raw = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)), "png")
    place = raw.index(b"IDAT") - 4
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000)))
    with pytest.raises(ValueError, match="truncated"):
        read((raw[:place] + text + raw[place:])[:-1000])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture, which is not supported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"hello", "cannot identify image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot identify image file"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, raw: bytes, reason: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.jpg").write_bytes(raw)
    with pytest.raises(UndiffuseError, match=f"a.jpg: {reason}"):
        data.load(tmp_path / "root")


# Scaling


def lanczos(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of (H, W) scaled by Lanczos' kernel (a = 3), widened to shrink: from the definition."""
    side = min(image.shape)

    def weights(length: int) -> np.ndarray:
        scale = side / size
        centres = (length - side) / 2 + (np.arange(size) + 0.5) * scale
        x = (np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
        kernel = np.sinc(x) * np.sinc(x / 3) * (abs(x) < 3)
        return kernel / kernel.sum(1, keepdims=True)

    rows, columns = (weights(length) for length in image.shape)
    across = np.clip(np.rint(image @ columns.T), 0, 255)  # 8 bits after each direction
    return np.clip(np.rint(rows @ across), 0, 255)


@pytest.mark.parametrize(
    ("shape", "size"), [((50, 50), 16), ((37, 50), 16), ((64, 41), 8), ((40, 40), 32), ((9, 12), 32), ((33, 32), 32)]
)
def test_scaling_is_lanczos_of_the_central_square(shape: tuple[int, int], size: int) -> None:
    """The square may begin half a pixel from the edge: (50 - 37) / 2 = 6.5."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    got = policy.fit(Image.fromarray(image), size, 1)[..., 0]
    assert np.abs(got - lanczos(image.astype(float), size)).max() <= 1
    assert np.array_equal(policy.fit(image[..., None], size, 1)[..., 0], got)


def test_transparency_is_laid_on_white_before_scaling() -> None:
    grey, alpha = np.random.default_rng(0).integers(0, 2, (2, 48, 48)) * 255
    picture = Image.fromarray(np.dstack([grey, alpha]).astype(np.uint8))
    got = policy.fit(pixels.to_eight_bit(picture), 20, 1)[..., 0]
    assert np.abs(got - lanczos(np.where(alpha == 255, grey, 255.0), 20)).max() <= 1


def test_half_transparency_is_rounded() -> None:
    grey, alpha = np.meshgrid(np.arange(256), np.arange(256))
    got = np.asarray(pixels.to_eight_bit(Image.fromarray(np.dstack([grey, alpha]).astype(np.uint8)))).astype(int)
    assert np.abs(got - on_white(grey / 255, alpha / 255)).max() <= 1
