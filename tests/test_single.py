"""Single pictures for editing are read as data sets are; masks have one polarity; strokes are composited."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse import data
from undiffuse.data import policy
from undiffuse.data.single import read_mask, read_pictures, read_strokes
from undiffuse.errors import UndiffuseError, UsageError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (40, 60, 4), dtype=np.uint8)
SHAPE = (8, 8, 1)


pytestmark = pytest.mark.usefixtures("own_cache")


def saved(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def pictures(folder: Path) -> None:
    """Files as people have them: turned, transparent, deep, printed, indexed, moving, grey, of one bit."""
    colour, layered = Image.fromarray(PIXELS[..., :3]), Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(folder / "turned.jpg", colour, exif=exif)
    saved(folder / "alpha.png", layered)
    saved(folder / "alpha.webp", layered, lossless=True)
    saved(folder / "grey-alpha.png", layered.convert("LA"))
    saved(folder / "deep.png", (PIXELS[..., 0].astype(np.uint16) << 8) + PIXELS[..., 1])
    saved(folder / "float.tif", PIXELS[..., 0].astype(np.float32) / 255)
    saved(folder / "cmyk.jpg", colour.convert("CMYK"))
    saved(folder / "palette.png", colour.convert("P"), transparency=3)
    saved(folder / "moving.gif", colour, save_all=True, append_images=[colour.rotate(180)])
    saved(folder / "moving.webp", colour, save_all=True, append_images=[colour.rotate(180)])
    saved(folder / "bit.png", colour.convert("1"))
    saved(folder / "panorama.bmp", colour.resize((500, 9)))
    saved(folder / "tiny.png", colour.resize((2, 3)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_as_data_sets_are(tmp_path: Path, channels: int) -> None:
    (tmp_path / "set").mkdir()
    pictures(tmp_path / "set")
    rows = data.load(tmp_path / "set", "all", size=12, channels=channels)
    assert len(rows) == 13
    for name, expected in zip(rows.names, rows.images, strict=True):
        (got,) = read_pictures([tmp_path / "set" / name], (12, 12, channels))
        assert np.array_equal(got, expected), name
    several = read_pictures([tmp_path / "set" / name for name in rows.names], (12, 12, channels))
    assert np.array_equal(several, rows.images)


def test_a_picture_of_the_models_size_is_not_touched(tmp_path: Path) -> None:
    """Of a size that is not square either."""
    path = saved(tmp_path / "a.png", PIXELS[..., :3])
    assert np.array_equal(read_pictures([path], (40, 60, 3))[0], PIXELS[..., :3])


@pytest.mark.parametrize("shape", [(8, 8), (10, 20), (20, 10), (7, 13), (1, 50)])
def test_the_central_part_has_the_proportions_of_the_model(shape: tuple[int, int]) -> None:
    """It is centred, touches two opposite sides and is not stretched."""
    assert policy.central_box(40, 30, (10, 20)) == (0, 5, 40, 25)
    for width, height in RANDOM.integers(1, 5000, (200, 2)).tolist():
        left, top, right, bottom = policy.central_box(width, height, shape)
        assert left == pytest.approx(width - right, abs=1e-9) and top == pytest.approx(height - bottom, abs=1e-9)
        assert min(left, top) == 0
        assert (right - left) * shape[0] == pytest.approx((bottom - top) * shape[1], rel=1e-12)
        Image.new("L", (width, 1)).resize((3, 1), box=(left, 0, right, 1))  # Pillow refuses a box that is outside


def broken(folder: Path) -> dict[str, Path]:
    whole = saved(folder / "whole.png", PIXELS).read_bytes()
    files = {"truncated.png": whole[: len(whole) // 2], "empty.jpg": b"", "text.png": b"not a picture at all"}
    bomb = bytearray(whole)
    bomb[16:24] = (1 << 16).to_bytes(4, "big") * 2
    files |= {"bomb.png": bytes(bomb), "phone.png": b"\0\0\0\x18ftypheic" + bytes(20)}
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    saved(folder / "white.tif", np.full((4, 4), 300, np.float32))
    return {name: folder / name for name in (*files, "white.tif")}


def test_what_cannot_be_read_is_refused_by_name_for_the_reason_that_data_sets_give(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, path in broken(tmp_path / "set").items():
        with pytest.raises(UndiffuseError, match=name) as refused, warnings.catch_warnings(action="error"):
            read_pictures([path], SHAPE)
        (tmp_path / name).mkdir()
        path.rename(tmp_path / name / name)
        with pytest.raises(UndiffuseError) as report:
            data.load(tmp_path / name, "all", size=8)
        reason = str(refused.value).partition(f"{path}: ")[2]
        assert reason and reason in str(report.value) and "\n" not in str(refused.value)
    for path, said in ((tmp_path / "set", "not a regular file"), (tmp_path / "none.png", "there is no such file")):
        with pytest.raises(UndiffuseError, match=said):
            read_pictures([path], SHAPE)
    with pytest.raises(UsageError, match="shape 2"):
        read_pictures([], (2,))


def test_a_picture_of_another_full_scale_gets_the_remark_of_data_sets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_pictures([saved(tmp_path / "dark.png", PIXELS[..., 0].astype(np.uint16))], SHAPE)
    assert "nearly black" in caplog.text and "dark.png" in caplog.text


def test_white_is_repainted_and_black_is_kept(tmp_path: Path) -> None:
    """Of the model's size: pixel by pixel, whatever the mode; values up to the tolerance of JPEG are hard."""
    repaint = RANDOM.random((8, 8)) < 0.5
    picture = saved(tmp_path / "a.png", PIXELS[..., :3])
    values = np.where(repaint, 255, 0).astype(np.uint8)
    values[0, :2], repaint[0, :2] = (15, 240), (False, True)
    for mode in ("L", "RGB", "RGBA", "1", "P"):
        path = saved(tmp_path / f"{mode}.png", Image.fromarray(values).convert(mode))
        assert np.array_equal(read_mask(path, [picture], SHAPE), repaint), mode
    deep = saved(tmp_path / "deep.png", values.astype(np.uint16) * 257)
    assert np.array_equal(read_mask(deep, [picture], SHAPE), repaint)


def test_a_mask_of_the_pictures_size_is_cut_with_it(tmp_path: Path) -> None:
    """60 x 40 becomes the 40 x 40 in its middle, and each 5 x 5 block of that a pixel. A picture that its EXIF turns
    has the size that it is seen at."""
    repaint = RANDOM.random((8, 8)) < 0.5
    values = np.full((40, 60), 255, np.uint8)
    values[:, 10:50] = np.kron(repaint, np.full((5, 5), 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = saved(tmp_path / "a.jpg", Image.fromarray(PIXELS[..., :3]))
    turned = saved(tmp_path / "b.jpg", Image.fromarray(PIXELS[..., :3]), exif=exif)
    across, down = saved(tmp_path / "m.png", values), saved(tmp_path / "n.png", values.T)
    assert np.array_equal(read_mask(across, [upright], SHAPE), repaint)
    assert np.array_equal(read_mask(down, [turned], SHAPE), repaint.T)
    for mask, originals in ((across, [turned]), (down, [upright]), (across, [upright, turned])):
        with pytest.raises(UsageError, match=r"is .*: it must have .*, or that of the model, 8x8"):
            read_mask(mask, originals, SHAPE)


def test_a_soft_mask_is_refused_until_it_is_made_hard(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    path, picture = saved(tmp_path / "soft.png", values), saved(tmp_path / "a.png", PIXELS)
    with pytest.raises(UsageError, match=r"soft.png is soft: .*--mask-threshold 128"):
        read_mask(path, [picture], SHAPE)
    for threshold in (1, 100, 128, 252):
        assert np.array_equal(read_mask(path, [picture], SHAPE, threshold), values >= threshold)
    for value, hard in ((15, True), (16, False), (239, False), (240, True)):
        path = saved(tmp_path / "edge.png", np.where(np.eye(8) > 0, 255, value).astype(np.uint8))
        if hard:
            assert np.array_equal(read_mask(path, [picture], SHAPE), (np.eye(8) > 0) | (value > 128))
        else:
            with pytest.raises(UsageError, match="soft"):
                read_mask(path, [picture], SHAPE)
    for threshold in (0, 256):
        with pytest.raises(UsageError, match="between 1 and 255"):
            read_mask(path, [picture], SHAPE, threshold)


def test_masks_that_are_probably_not_meant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = saved(tmp_path / "a.png", PIXELS[..., :3])
    ones = saved(tmp_path / "ones.png", np.eye(8).astype(np.uint8))
    with pytest.raises(UsageError, match=r"no white, and .* 1 of 255. Invert"):
        read_mask(ones, [picture], SHAPE)
    aside = np.zeros((40, 60), np.uint8)
    aside[:, :9] = 255
    with pytest.raises(UsageError, match="no white in the central part"):
        read_mask(saved(tmp_path / "aside.png", aside), [picture], SHAPE)
    with pytest.raises(UsageError, match="transparency"):
        read_mask(saved(tmp_path / "layer.png", PIXELS), [picture], SHAPE)
    assert read_mask(saved(tmp_path / "full.png", np.full((8, 8), 255, np.uint8)), [picture], SHAPE).all()
    assert "white all over" in caplog.text
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(UndiffuseError, match=r"broken.png: the file is empty"):
        read_mask(tmp_path / "broken.png", [picture], SHAPE)


@pytest.mark.parametrize("channels", [1, 3])
def test_strokes_lie_over_the_picture(tmp_path: Path, channels: int) -> None:
    """As Pillow composites them, to a value; what has no paint stays as it is, bit for bit."""
    layer = PIXELS[:8, :8].copy()
    layer[:4, :, 3] = (0, 255) * 4
    rows = RANDOM.integers(0, 256, (3, 8, 8, channels), dtype=np.uint8)
    strokes = read_strokes(saved(tmp_path / "s.png", layer), [], (8, 8, channels))
    assert np.array_equal((strokes.alpha > 0), layer[..., 3] > 0)
    got = strokes.over(rows)
    assert got.dtype == np.uint8 and np.array_equal(got[:, strokes.alpha == 0], rows[:, strokes.alpha == 0])
    paint = Image.fromarray(layer).convert("RGB").convert("L" if channels == 1 else "RGB").convert("RGB")
    paint.putalpha(Image.fromarray(layer[..., 3]))
    for row, painted in zip(rows, got, strict=True):
        below = Image.fromarray(np.broadcast_to(row, (8, 8, 3)).copy()).convert("RGBA")
        expected = np.asarray(Image.alpha_composite(below, paint))[..., :channels]
        assert np.abs(painted.astype(int) - expected).max() <= 1
    share = layer[..., 3:] / 255
    assert np.abs(got - (share * strokes.colour + (1 - share) * rows)).max() <= 0.5 + 1e-9
    opaque = layer[..., 3] == 255
    assert np.array_equal(got[:, opaque], np.broadcast_to(strokes.colour[opaque], got[:, opaque].shape))


def test_strokes_of_the_pictures_size_are_reduced_by_area(tmp_path: Path) -> None:
    """The share of a block that is painted is its opacity; the colour of transparent pixels never shows."""
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[..., :3] = 255, 0, 0  # a red that is not there
    layer[:, 12:27] = 0, 0, 200, 255
    picture = saved(tmp_path / "a.png", PIXELS[..., :3])
    strokes = read_strokes(saved(tmp_path / "s.png", layer), [picture], (8, 8, 3))
    expected = np.array([3 / 5, 1, 1, 2 / 5, 0, 0, 0, 0]) * 255
    assert np.abs(strokes.alpha - expected).max() <= 1
    assert np.abs(strokes.colour[(strokes.alpha > 0)].astype(int) - (0, 0, 200)).max() <= 1


def test_strokes_that_are_no_layer(tmp_path: Path) -> None:
    picture = saved(tmp_path / "a.png", PIXELS[..., :3])
    with pytest.raises(UsageError, match=r"no transparent part"):
        read_strokes(picture, [picture], (40, 60, 3))
    with pytest.raises(UsageError, match=r"transparent all over$"):
        read_strokes(saved(tmp_path / "none.png", Image.new("RGBA", (8, 8))), [picture], SHAPE)
    aside = Image.new("RGBA", (60, 40))
    aside.paste((9, 9, 9, 255), (0, 0, 5, 40))
    with pytest.raises(UsageError, match=r"in the central part"):
        read_strokes(saved(tmp_path / "aside.png", aside), [picture], SHAPE)
    with pytest.raises(UsageError, match=r"is 9x9"):
        read_strokes(saved(tmp_path / "size.png", Image.new("RGBA", (9, 9))), [picture], SHAPE)


def test_layers_keep_the_transparency_that_pictures_lose() -> None:
    """A layer laid on white is the picture that `decode` reads, for each kind of transparency; and it is upright."""
    exif = Image.Exif()
    exif[0x0112] = 8
    indexed = Image.fromarray(PIXELS[..., :3]).convert("P")
    for image, options in (
        (Image.fromarray(PIXELS), {"exif": exif}),
        (Image.fromarray(PIXELS).convert("LA"), {}),
        (indexed, {"transparency": 7}),
        (Image.fromarray(PIXELS[..., 0]), {"transparency": 9}),
        (Image.fromarray(PIXELS[..., :3]), {}),
    ):
        file = io.BytesIO()
        image.save(file, "png", **options)
        file.seek(0)
        layer = policy.decode_layer(file)
        file.seek(0)
        white = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        assert np.array_equal(np.asarray(white), np.asarray(policy.decode(file).convert("RGB")))
