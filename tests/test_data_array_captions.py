"""Captions and attributes in .npz files."""

from pathlib import Path

import numpy as np
import pytest

from undiffuse import data
from undiffuse.data.avatars import as_json
from undiffuse.errors import UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
TEXTS = [["a cat", "it sleeps"], ["a dog", "it barks"], ["a cow", "it moos"]]
"""Captions of three pictures."""


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (np.array([row[0] for row in TEXTS]), [row[:1] for row in TEXTS]),
        (np.array([row[0].encode() for row in TEXTS]), [row[:1] for row in TEXTS]),
        (np.array(TEXTS), TEXTS),
        (as_json(TEXTS), TEXTS),
        (as_json(["a  cat ", [], ["a cow", " "]]), [["a cat"], [], ["a cow"]]),
        (np.array(["", "", ""]), []),
    ],
)
def test_captions_and_attributes_of_arrays(tmp_path: Path, captions: np.ndarray, expected: list[list[str]]) -> None:
    kinds = {"kind": ["cat", "dog", "cow"], "name": ["Ann", "Ben", "Cid"]}
    np.savez(tmp_path / "a.npz", x_train=IMAGES[:2], x_test=IMAGES[2:], captions=captions, attributes=as_json(kinds))
    whole = data.load(tmp_path / "a.npz", "all")
    assert whole.captions == tuple(map(tuple, expected))
    assert whole.attributes == {name: tuple(values) for name, values in kinds.items()}
    test = data.load(tmp_path / "a.npz", "test")
    assert test.captions == tuple(map(tuple, expected[2:])) and test.attributes == {"kind": ("cow",), "name": ("Cid",)}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("captions", np.array(["a", "b"]), "2 captions for 3 images"),
        ("captions", np.array([1.5, 2, 3]), "captions are float64 of shape (3,), expected strings"),
        ("captions", np.array([[["a"]]] * 3), "of shape (3, 1, 1), expected strings"),
        ("captions", np.array([b"\xff", b"b", b"c"]), "UTF-8"),
        ("captions", np.frombuffer(b'["a",', np.uint8), "captions is not JSON"),
        ("captions", np.frombuffer(b"[" * 100_000, np.uint8), "captions is not JSON"),
        ("captions", as_json({"a": "b"}), "captions should be a list"),
        ("captions", as_json(3), "captions should be a list"),
        ("captions", as_json(["a", 5, "c"]), "must be text, not 5"),
        ("captions", as_json(["a", [None], "c"]), "must be text, not [None]"),
        ("captions", as_json(["a", "\ud800", "c"]), "must be text, not ['\\ud800']"),
        ("attributes", as_json(["a", "b", "c"]), "one value per image"),
        ("attributes", as_json({"hair": ["a", "b"]}), "one value per image"),
        ("attributes", as_json({"hair": 3}), "one value per image"),
        ("attributes", as_json({"hair": "abc"}), "one value per image"),
        ("attributes", as_json({"hair": ["a", "b", 3]}), "must be text"),
        ("attributes", np.array(["a", "b", "c"]), "attributes is not JSON"),
        ("attributes", np.frombuffer(b"\xff\xfe", np.uint8), "attributes is not JSON"),
    ],
)
def test_captions_and_attributes_that_are_none(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, **{name: array})
    with pytest.raises(UsageError) as caught:
        data.load(tmp_path / "a.npz", "all")
    said = str(caught.value)
    assert message in said and "a.npz: " in said and "\n" not in said and len(said) < 600
