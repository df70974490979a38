"""Non-leaking augmentation: moves in closed form, labels that say what was done, nothing for samples."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import undiffuse.data
from undiffuse.conditions import Labels, augmented, label_encoder
from undiffuse.config import make_config
from undiffuse.domains.augmentation import LABELS, Moves, draw_moves, moved
from undiffuse.errors import UsageError
from undiffuse.networks import UNet
from undiffuse.randomness import BatchDraw, stream
from undiffuse.training import train
from undiffuse.training.batches import make_batch

NAMES = [field.name for field in dataclasses.fields(Moves)]


def moves(count: int = 1, **values: float) -> Moves:
    return Moves(**{name: np.full(count, float(values.get(name, 0))) for name in NAMES})


def drawn(probability: float, count: int = 20_000) -> Moves:
    return draw_moves(probability, BatchDraw(stream(0, 1), count, slice(None)))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize("mirror", [0, 1])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_and_flips_are_numpys(rows: np.ndarray, turns: int, mirror: int) -> None:
    """Byte for byte; the mirror comes first."""
    expected = np.rot90(rows[:, :, ::-1] if mirror else rows, turns, axes=(1, 2))
    assert np.array_equal(moved(rows, moves(5, mirror=mirror, angle=turns * np.pi / 2)), expected)
    assert np.array_equal(moved(rows, moves(5, flip=1)), rows[:, ::-1])


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-5, 4)])
def test_whole_pixels_are_shifted_as_they_are(right: int, down: int) -> None:
    """Byte for byte, also for oblong pictures; what comes in is the picture reflected at its edge."""
    rows = np.random.default_rng(1).integers(0, 256, (2, 8, 16, 1), dtype=np.uint8)
    padded = np.pad(rows, ((0, 0), (6, 6), (6, 6), (0, 0)), mode="symmetric")
    expected = padded[:, 6 - down : 14 - down, 6 - right : 22 - right]
    assert np.array_equal(moved(rows, moves(2, right=right / 16 * 8, down=down / 8 * 8)), expected)


def test_every_move_at_once_is_the_map_written_with_complex_numbers() -> None:
    """On a ramp, where the interpolation is off by 5% of the slope at most: z = x + iy, y up, and the moves in turn."""
    side, move = (
        32,
        {"mirror": 1, "scale": 1.5, "angle": 0.7, "stretch": -1.2, "direction": 0.4, "right": 0.3, "down": 1},
    )
    along, across = np.meshgrid(np.arange(side), np.arange(side))
    ramp = (3 * along + 4 * across).astype(np.uint8)[None, :, :, None]
    z = along - 15.5 - 1j * (across - 15.5)  # of the output: take the moves back, the last one first
    z = z - side / 8 * (move["right"] - 1j * move["down"])
    w = z * np.exp(-1j * move["direction"])
    factor = 2 ** (0.2 * move["stretch"])
    z = (w.real / factor + 1j * w.imag * factor) * np.exp(1j * move["direction"])
    z = z * np.exp(-1j * move["angle"]) / 2 ** (0.2 * move["scale"])
    z = -z.conj()
    x, y = z.real + 15.5, 15.5 - z.imag
    inside = (x > 2) & (x < 29) & (y > 2) & (y < 29)
    assert inside.sum() > 300
    result = moved(ramp, moves(1, **move))[0, :, :, 0]
    np.testing.assert_allclose(result[inside], (3 * x + 4 * y)[inside], rtol=0, atol=0.5 + 0.05 * 7)


def test_labels_say_exactly_what_was_done() -> None:
    """The map is a function of the labels: written here, from the labels alone, it is that of the moves."""
    some = drawn(0.5, 200)
    m, f, s, cos, sin, two_cos, two_sin, right, down = some.labels.astype(np.float64).T
    stretch, direction = np.hypot(two_cos, two_sin), np.arctan2(two_sin, two_cos) / 2
    expected = np.zeros((200, 3, 3))
    for row in range(200):
        c, d = np.cos(direction[row]), np.sin(direction[row])
        axes = np.array([[c, d], [-d, c]])
        sizes = 2.0 ** (0.2 * np.array([stretch[row], -stretch[row]]))
        turn = np.array([[1 + cos[row], sin[row]], [-sin[row], 1 + cos[row]]])
        flips = np.diag([1 - 2 * m[row], 1 - 2 * f[row]])
        expected[row, :2, :2] = axes @ np.diag(sizes) @ axes.T @ turn @ flips * 2 ** (0.2 * s[row])
        expected[row, :, 2] = 24 * right[row] / 8, 16 * down[row] / 8, 1
    np.testing.assert_allclose(some.matrices(16, 24), expected, atol=1e-5)  # labels are float32


def test_each_move_is_made_as_often_and_as_far_as_the_paper_says() -> None:
    """Probabilities within five standard errors, standard deviations within 5% (table 6)."""
    some, p = drawn(0.12), 0.12
    for name, share in {
        "mirror": p / 2,
        "flip": p / 2,
        "scale": p,
        "angle": p,
        "stretch": p,
        "right": p,
        "down": p,
    }.items():
        values = getattr(some, name)
        assert np.mean(values != 0) == pytest.approx(share, abs=5 * (share / len(values)) ** 0.5)
        std = {"mirror": 1, "flip": 1, "angle": np.pi / 3**0.5}.get(name, 1.0)
        assert np.sqrt(np.mean(values[values != 0] ** 2)) == pytest.approx(std, rel=0.05)
    assert np.array_equal(some.right != 0, some.down != 0)  # one move


def test_rows_without_a_move_have_no_label_and_keep_their_bytes(rows: np.ndarray) -> None:
    """And with probability 0 there is no move at all."""
    assert not drawn(0.0, 100).labels.any()
    some = drawn(0.1, 5)
    still = ~some.labels.any(1)
    assert 0 < still.sum() < 5
    result = moved(rows, some)
    assert np.array_equal(result[still], rows[still]) and (result[~still] != rows[~still]).any((1, 2, 3)).all()


def test_a_batch_does_not_depend_on_how_it_is_shared_out(data: str) -> None:
    """The pictures and labels of its parts, put together, are those of the whole."""
    config = make_config({"data.source": data, "data.augment": 0.3, "training.batch_size": 12})
    images = undiffuse.data.load(data)
    whole = make_batch(config, images, 3, slice(None))
    parts = [make_batch(config, images, 3, part) for part in (slice(0, 5), slice(5, 12))]
    assert torch.equal(whole.x0, torch.cat([part.x0 for part in parts]))
    labels: Any = [batch.condition.labels for batch in (whole, *parts)]  # type: ignore[union-attr]
    assert torch.equal(labels[0], torch.cat(labels[1:])) and labels[0].any()
    plain = make_batch(make_config({"data.source": data, "training.batch_size": 12}), images, 3, slice(None))
    still = ~labels[0].any(1)
    assert torch.equal(whole.x0[still], plain.x0[still])
    assert torch.equal(whole.condition.condition.index, plain.condition.index)  # type: ignore[union-attr]


def test_a_network_takes_missing_labels_for_zeros() -> None:
    """Bit for bit, so samples are of unmoved pictures; other labels change what it computes."""
    torch.manual_seed(0)
    network = UNet(1, 1, channels=(16,), blocks=1, attention=(), encoders=label_encoder(3), augmentation=LABELS)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, log_snr, labels = torch.randn(4, 1, 8, 8), torch.randn(4), Labels(torch.arange(4), 3)
    answer = network(x, log_snr, labels)
    assert torch.equal(network(x, log_snr, augmented(labels, torch.zeros(4, LABELS))), answer)
    other = network(x, log_snr, augmented(labels, torch.eye(4, LABELS)))
    assert (other != answer).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network.kind": "unet2d", "network.channels": (8,)}, "network.kind=unet2d takes no augmentation labels"),
        ({"data.augment": 1.5}, "data.augment = 1.5"),
    ],
)
def test_augmentation_that_cannot_be_is_refused(tiny: dict[str, Any], tmp_path: Any, values: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train({**tiny, "data.augment": 0.1, **values}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_points_are_not_augmented(tmp_path: Any) -> None:
    points = dataclasses.replace(
        undiffuse.data.ImageSet("p", "train", np.zeros((8, 2), np.float32), None, (), (), "", "f"), domain="points"
    )
    with pytest.raises(UsageError, match=r"data\.augment is for pictures, and these are points"):
        train({"network.kind": "mlp", "data.augment": 0.1, "training.steps": 1}, tmp_path / "run", data=points)
