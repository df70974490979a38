"""What would have no effect, or cannot be, is refused in one line that names it; nothing is written."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

REFUSED = [
    ("sample fashion-mnist --guidance-interval .2,1", "--guidance-interval has no effect without guidance"),
    ("sample fashion-mnist --guidance 1 --guidance-rescale .5", "--guidance-rescale has no effect without guidance"),
    ("sample fashion-mnist --apg 0", "--apg has no effect without guidance"),
    ("sample fashion-mnist --guide fashion-mnist", "--guide has no effect without guidance"),
    ("edit fashion-mnist p.png --class Bag --guide fashion-mnist", "--guide has no effect without guidance"),
    ("evaluate fashion-mnist --guidance-interval .2,1", "--guidance-interval has no effect without guidance"),
    ("compare fashion-mnist emoji --guidance-interval .2,1", "--guidance-interval has no effect without guidance"),
    ("compare fashion-mnist emoji --json f.png", "--json f.png: the name must end in .json"),
    ("evaluate fashion-mnist --json f.png", "--json f.png: the name must end in .json"),
    ("data show words.txt --size 4", "--size is not for texts"),
    ("data show words.txt --out sheet.png", "--out is not for texts"),
    ("train digits.npz --steps 1 --out run --set data.rate=8000", "data.rate is for sounds, and these are pictures"),
    ("train digits.npz --steps 1 --out run --set data.tokens=bpe", "data.tokens is for texts, and these are pictures"),
    ("train words.txt --steps 1 --out run --set data.sound=mdct", "data.sound is for sounds, and this is a text"),
    (
        "train words.txt --steps 1 --out run --from fashion-mnist",
        "is a model of images (pictures), and ",
    ),
    ("train model --steps 1 --out run", "model holds a model and no data"),
    ("data show model", "model holds a model and no data"),
    ("train digits.npz --steps 1 --out p.png", "p.png is a file, and a run is a folder"),
    ("edit fashion-mnist p.png --restore matrix", "a linear map is given by its file"),
    ("edit fashion-mnist p.png --restore other.npz", "no linear map: it has other"),
    ("edit fashion-mnist p.png --restore denoise", "denoise mends sounds, and this model draws pictures"),
    ("distill fashion-mnist-likelihood --minutes 1", "which a student cannot have"),
]


@pytest.mark.parametrize(("words", "reason"), REFUSED)
def test_in_one_line(words: str, reason: str, tmp_path: Path, command: Command) -> None:
    Image.new("L", (28, 28), 100).save("p.png")
    np.savez("other.npz", other=np.zeros(3))
    np.savez("digits.npz", images=np.zeros((20, 16, 16), np.uint8))
    Path("words.txt").write_text("To be, or not to be: that is the question. " * 200)
    Path("model").mkdir()
    Path("model/model.json").write_text("{}")
    before = sorted(Path().rglob("*"))
    code, _, err = command(*words.split())
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("undiffuse: ") and reason in last, err
    assert sorted(Path().rglob("*")) == before
