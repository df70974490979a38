"""Linear maps: beside NumPy, SciPy and Pillow, their adjoints, and one line for what cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from linear import dense
from PIL import Image
from scipy import ndimage, sparse

from undiffuse.editing.operators import parse
from undiffuse.errors import UsageError
from undiffuse.guidance import Observation, together

SHAPE = (3, 6, 8)
SIZE = 144
RANDOM = np.random.default_rng(0)
MASK = np.zeros(SHAPE[1:], np.uint8)
MASK[2:5, 1:6] = 255
X = RANDOM.uniform(-1, 1, (5, *SHAPE))
ROWS = RANDOM.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def forward(spec: str, mask: np.ndarray | None = None) -> np.ndarray:
    return parse(spec, SHAPE, mask).map.forward(torch.from_numpy(X)).numpy()


def file(folder: Path, kind: str) -> tuple[str, np.ndarray]:
    """A map of 7 numbers, and the path of a file that holds it."""
    matrix = RANDOM.normal(size=(7, SIZE)) * (RANDOM.random((7, SIZE)) < 0.2)
    path = folder / f"{kind}.npz"
    if kind == "dense":
        np.savez(path, H=matrix)
    else:
        sparse.save_npz(path, getattr(sparse, f"{kind}_matrix")(matrix))
    return str(path), matrix


@pytest.mark.parametrize(
    "spec", ["superres:2", "blur:0.7", "blur:7", "colour", "inpaint", "dequantise:16", "dequantise"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_adjoint_is_the_adjoint(spec: str, dtype: torch.dtype) -> None:
    """<H x, y> = <x, H^T y>, for batches, in the dtype they come in."""
    map = parse(spec, SHAPE, MASK if spec == "inpaint" else None).map
    x, y = torch.from_numpy(X).to(dtype), torch.from_numpy(RANDOM.normal(size=(5, *map.observed))).to(dtype)
    assert map.forward(x).dtype == map.adjoint(y).dtype == dtype
    left, right = (map.forward(x) * y).flatten(1).sum(1), (x * map.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(
        left, right, rtol=1e-12 if dtype == torch.float64 else 1e-4, atol=1e-12 * 1e8 ** (dtype == torch.float32)
    )


def test_superres_is_the_mean_of_blocks() -> None:
    np.testing.assert_allclose(forward("superres:2"), X.reshape(5, 3, 3, 2, 4, 2).mean((3, 5)), atol=1e-15)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 6.0])
def test_blur_is_scipys(sigma: float) -> None:
    """`gaussian_filter` with its default boundary, also where the kernel is wider than the picture."""
    expected = ndimage.gaussian_filter(X, (0, 0, sigma, sigma), mode="reflect", truncate=4.0)
    np.testing.assert_allclose(forward(f"blur:{sigma}"), expected, atol=1e-14)


def test_colour_is_pillows_grey() -> None:
    """To the rounding of 8 bits, in pictures as they are stored."""
    grey = np.stack([np.asarray(Image.fromarray(row).convert("L")) for row in ROWS])[..., None]
    degradation = parse("colour", SHAPE)
    x0 = torch.from_numpy(ROWS / 127.5 - 1).permute(0, 3, 1, 2)
    np.testing.assert_allclose(degradation.map.forward(x0), degradation.encode(grey), atol=0.51 / 127.5)


def test_inpaint_sees_what_is_black() -> None:
    """The known pixels alone, from a whole picture; what is white has no influence."""
    degradation = parse("inpaint", SHAPE, MASK)
    np.testing.assert_array_equal(forward("inpaint", MASK), X[:, :, MASK == 0])
    np.testing.assert_array_equal(forward("inpaint", MASK.astype(bool)), X[:, :, MASK == 0])
    changed = np.where(MASK[:, :, None] == 255, 0, ROWS).astype(np.uint8)
    assert degradation.map.observed == (3, 33)
    assert (degradation.encode(ROWS) == degradation.encode(changed)).all()
    np.testing.assert_allclose(degradation.encode(ROWS)[:, 2, 0], ROWS[:, 0, 0, 2] / 127.5 - 1)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "coo"])
def test_a_matrix_from_a_file(kind: str, tmp_path: Path) -> None:
    """It multiplies the picture as NumPy has it, (H, W, C) row by row; SciPy's sparse files are read."""
    path, matrix = file(tmp_path, kind)
    flat = X.transpose(0, 2, 3, 1).reshape(5, -1)
    np.testing.assert_allclose(forward(path), flat @ matrix.T, atol=1e-13)
    map = parse(path, SHAPE).map
    y = RANDOM.normal(size=(5, 7))
    adjoint = map.adjoint(torch.from_numpy(y)).permute(0, 2, 3, 1).flatten(1)
    np.testing.assert_allclose(adjoint, y @ matrix, atol=1e-13)
    assert map.forward(torch.from_numpy(X).float()).dtype == torch.float32


def test_what_a_map_observes_of_pixels_is_what_it_observes_of_x0(tmp_path: Path) -> None:
    """`encode` undoes the scale of stored pictures, also of maps that change the brightness."""
    path, matrix = file(tmp_path, "dense")
    x0 = torch.from_numpy(ROWS / 127.5 - 1).permute(0, 3, 1, 2)
    stored = ROWS.reshape(5, -1) @ matrix.T
    degradation = parse(path, SHAPE)
    np.testing.assert_allclose(
        degradation.encode(stored / 127.5 - matrix.sum(1)), degradation.map.forward(x0), atol=1e-12
    )
    darker = np.zeros((4, SIZE))
    for k in range(4):
        darker[k, 20 * k : 20 * k + 3] = 0.2, 0.1, 0.3
    np.savez(tmp_path / "darker.npz", H=darker)
    seen = (ROWS.reshape(5, -1) @ darker.T).round().astype(np.uint8).reshape(5, 2, 2, 1)
    degradation = parse(str(tmp_path / "darker.npz"), SHAPE)
    np.testing.assert_allclose(degradation.encode(seen), degradation.map.forward(x0), atol=0.51 / 127.5)


def test_two_maps_together_are_their_rows() -> None:
    """The matrix of both is one above the other, with the noise of each, and its adjoint is its transpose."""
    maps = [parse(spec, SHAPE, MASK if spec == "inpaint" else None).map for spec in ("superres:2", "inpaint", "colour")]
    seen = [torch.zeros(1 + (k == 1), *map.observed, dtype=torch.float64) + k for k, map in enumerate(maps)]
    both = together(*(Observation(map, y, 0.1 * (k + 1)) for k, (map, y) in enumerate(zip(maps, seen, strict=True))))
    stacked = np.concatenate([dense(map) for map in maps])
    np.testing.assert_array_equal(dense(both.map), stacked)
    units = torch.eye(len(stacked), dtype=torch.float64)
    np.testing.assert_allclose(both.map.adjoint(units).flatten(1), stacked, atol=1e-15)
    counts = [len(dense(map)) for map in maps]
    np.testing.assert_allclose(both.variance, np.repeat([0.01, 0.04, 0.09], counts))
    np.testing.assert_array_equal(both.y[1], np.repeat([0, 1, 2], counts))


def test_the_step_of_rounding() -> None:
    """dequantise:L has L values from -1 to 1, pictures 256."""
    assert parse("dequantise:5", SHAPE).step == 0.5
    assert parse("dequantise", SHAPE).step == parse("colour", SHAPE).step == pytest.approx(1 / 127.5)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("suprres:4", "did you mean superres"),
        ("superres", "whole number from 2 to 6"),
        ("superres:1", "whole number"),
        ("superres:2.5", "whole number"),
        ("superres:4", "does not divide pictures of 6x8"),
        ("blur:nan", "a number from 0.1"),
        ("blur:-1", "a number from 0.1"),
        ("blur:" + "9" * 500, "a number from 0.1"),
        ("colour:2", "takes no argument"),
        ("dequantise:1", "from 2 to 256"),
        ("inpaint", "needs a mask"),
        ("", "no restoration"),
        ("nothing.npz", "No such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(spec: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(spec, SHAPE)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_masks_and_models_that_do_not_fit() -> None:
    soft = MASK.copy()
    soft[0, 0] = 7
    for mask, says in (
        (soft, "black .* and white"),
        (MASK[:-1], "5x8 and the picture 6x8"),
        (MASK + True | 255, "all white"),
    ):
        with pytest.raises(UsageError, match=says):
            parse("inpaint", SHAPE, mask)
    with pytest.raises(UsageError, match="takes no mask"):
        parse("colour", SHAPE, MASK)
    with pytest.raises(UsageError, match="draws grey"):
        parse("colour", (1, 6, 8))
    with pytest.raises(UsageError, match="only pictures"):
        parse("blur:1", (2,))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"H": np.ones((3, 5))}, "a map of 5 numbers"),
        ({"H": np.ones(5)}, "no linear map"),
        ({"H": np.full((2, SIZE), np.nan)}, "finite"),
        ({"H": np.array([{"a": 1}], dtype=object)}, "no linear map"),
        ({"other": np.ones(3)}, "no linear map"),
        ({"format": np.array(b"csr"), "data": np.ones(2), "shape": [2, SIZE]}, "no linear map"),
        ({"format": np.array(b"bsr"), "data": np.ones(2), "shape": [2, SIZE]}, "format bsr"),
        (
            {
                "format": np.array(b"csr"),
                "data": np.ones(1),
                "shape": [1, SIZE],
                "indices": [SIZE + 3],
                "indptr": [0, 1],
            },
            "no linear map",
        ),
    ],
)
def test_files_that_are_no_linear_map(arrays: dict, says: str, tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=says) as caught:
        parse(str(path), SHAPE)
    assert "\n" not in str(caught.value)


def test_pictures_of_another_size_are_refused() -> None:
    for spec, rows in (("superres:2", ROWS), ("colour", ROWS), ("blur:1", ROWS[:, :3]), ("superres:2", ROWS[0])):
        with pytest.raises(UsageError, match="observes"):
            parse(spec, SHAPE).encode(rows)
    with pytest.raises(UsageError, match="observes pictures of 6x8x3"):
        parse("inpaint", SHAPE, MASK).encode(ROWS[..., :1])
