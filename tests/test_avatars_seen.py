"""What is said of an avatar can be seen in its picture, and no picture is there twice."""

import json
from dataclasses import replace

import numpy as np
import pytest

from undiffuse.data import avatars
from undiffuse.data.builtin import AVATARS
from undiffuse.errors import UsageError


def test_embedded_pictures_differ_and_beards_smile() -> None:
    with np.load(AVATARS) as arrays:
        pictures = np.concatenate([arrays["x_train"], arrays["x_test"]])
        attributes = json.loads(arrays["attributes"].tobytes())
    assert len({picture.tobytes() for picture in pictures}) == len(pictures) == 12_000
    with_beard = [
        row for row in zip(attributes["facial hair"], attributes["expression"], strict=True) if "beard" in row
    ]
    assert len(with_beard) > 1000 and set(with_beard) == {("beard", "smiling")}


def test_a_beard_hides_the_mouth_so_its_expression_cannot_change() -> None:
    pytest.importorskip("dicebear")
    some = [avatars.avatar(3, number) for number in range(100)]
    one = next(one for one in some if one.attributes["facial hair"] == "beard")
    surprised = replace(one, attributes={**one.attributes, "expression": "surprised"})
    np.testing.assert_array_equal(avatars.draw(one, 64), avatars.draw(surprised, 64))  # DiceBear's doing
    with pytest.raises(UsageError, match="expression = surprised does not go with"):
        one.changed("expression", "surprised")
    shaven = replace(one, attributes={**one.attributes, "facial hair": "none"})
    assert (avatars.draw(shaven, 64) != avatars.draw(shaven.changed("expression", "surprised"), 64)).any()
    with pytest.raises(UsageError, match="facial hair = beard does not go with"):
        shaven.changed("expression", "surprised").changed("facial hair", "beard")
