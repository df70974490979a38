"""Tokenizers: exact round trips, what they refuse, and byte-pair encoding against one written out here."""

import json
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undiffuse.data.bpe import BPE, LONGEST, begun
from undiffuse.data.tokens import PIECE, UNKNOWN, Bytes, Characters, pieces
from undiffuse.errors import UsageError
from undiffuse.registry import TOKENIZERS

HARD = (
    "e\u0301 \u00e9 ﬁ \U0001f469\u200d\U0001f680 \u202eabc\u202c 漢\u3000\t\x0b\x1c\u2028\n\n a  b\ufeff \U0010ffff\x80"
)
VERSE = "the cat sat on the mat, that cat; the mat that the cat sat on\n" * 3
text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_encoded_comes_back_exactly(name: str) -> None:
    made = TOKENIZERS[name].learnt(HARD + VERSE, 300)
    again = TOKENIZERS[name].from_facts(json.loads(json.dumps(made.facts)))
    assert again == made and made.name == name
    for one in (HARD, VERSE, "", HARD + VERSE, HARD[::-1]):
        ids = made.encode(one)
        assert ids.dtype == np.uint16 and ids.ndim == 1 and (ids < made.size).all()
        assert made.decode(ids) == one and again.decode(again.encode(one)) == one


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(one=text)
def test_any_text_comes_back_exactly(name: str, one: str) -> None:
    made = TOKENIZERS[name].learnt(one, 300)
    assert made.decode(made.encode(one)) == one


def test_characters_are_numbered_in_the_order_of_their_code_points() -> None:
    made = Characters.learnt("banana é😀\n", 5)
    assert made.alphabet == "\n abné😀" and made.size == 7
    assert made.encode("nab\n😀").tolist() == [4, 2, 3, 0, 6]
    assert made.decode(np.array([6, 5, 0, 3])) == "😀é\nb"


def test_characters_that_training_lacks() -> None:
    made = Characters.learnt("abc", 0)
    with pytest.raises(UsageError, match=r"'x', 'z'.*no such character"):
        made.encode("azxa")
    assert made.reaching("cab") is made
    reaching = made.reaching("abz")
    assert reaching.alphabet == "abc" + UNKNOWN
    assert reaching.encode("azxc").tolist() == [0, 3, 3, 2]
    assert reaching.decode(reaching.encode("azxc")) == f"a{UNKNOWN}{UNKNOWN}c"
    assert Characters.learnt(f"a{UNKNOWN}", 0).reaching("b").size == 2  # the mark is not there twice


def test_a_character_beyond_the_last_one_is_unknown_too() -> None:
    assert Characters.learnt("a\U00020000", 0).reaching("z\U00030000").encode("\U00030000z").tolist() == [1, 1]


def test_too_many_characters_for_16_bits() -> None:
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10801)]))
    assert Characters.learnt(every[:65536], 0).encode(every[65535]).tolist() == [65535]
    with pytest.raises(UsageError, match=r"65,537 different characters.*bytes or bpe"):
        Characters.learnt(every[:65537], 0)


def test_bytes_are_those_of_utf_8() -> None:
    assert Bytes().encode("aé€").tolist() == [0x61, 0xC3, 0xA9, 0xE2, 0x82, 0xAC]
    assert Bytes().decode(np.array([0x61, 0xC3, 0x62, 0xFF], np.uint16)) == f"a{UNKNOWN}b{UNKNOWN}"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_half_of_a_surrogate_pair_is_refused(name: str) -> None:
    made = TOKENIZERS[name].learnt("ab \n", 300)
    with pytest.raises(UsageError, match=r"surrogate.*'\\ud83d', at character 2"):
        made.encode("ab\ud83d")


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("wrong", [-1, None, 0.0])
def test_numbers_that_are_no_tokens_are_refused(name: str, wrong: float | None) -> None:
    made = TOKENIZERS[name].learnt("ab \n", 300)
    with pytest.raises(ValueError, match=f"0 to {made.size - 1}"):
        made.decode(np.array([0, made.size if wrong is None else wrong]))
    assert made.decode(np.array([], np.uint16)) == ""


def words_of(text: str) -> list[str]:
    """GPT-2's words, for plain letters, punctuation and white space."""
    return re.findall(r" ?[a-z]+| ?[^\sa-z]+|\s+(?!\S)|\s+", text)


def letters(text: str) -> list[str]:
    return [{" ": "Ġ", "\n": "Ċ"}.get(letter, letter) for letter in text]


def merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    done: list[str] = []
    for symbol in symbols:
        if done and (done[-1], symbol) == pair and not done[-1].endswith("\0"):
            done[-1] = "".join(pair) + "\0"  # closed for this round
        else:
            done.append(symbol)
    return [symbol.rstrip("\0") for symbol in done]


def test_bpe_merges_the_most_frequent_pair_first() -> None:
    """Sennrich et al. (2016), Algorithm 1, on words as GPT-2 cuts them."""
    made = BPE.learnt(VERSE, 300)
    assert made.size == 256 + len(made.merges) < 300
    words = [(letters(word), count) for word, count in Counter(words_of(VERSE)).items()]
    for pair in (*made.merges, None):
        counts: Counter[tuple[str, str]] = Counter()
        for symbols, count in words:
            for one in pairwise(symbols):
                counts[one] += count
        if pair is None:
            assert max(counts.values(), default=0) < 2
            break
        assert counts[pair] == max(counts.values())
        words = [(merged(symbols, pair), count) for symbols, count in words]


def test_bpe_encodes_by_its_merges_in_their_order() -> None:
    made = BPE.learnt(VERSE, 280)
    other = "that mat is on the hat,\n\n  the math; cats sat\n"
    symbols = [letters(word) for word in words_of(other)]
    for pair in made.merges:
        symbols = [merged(word, pair) for word in symbols]
    plain = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    tokens = [*plain, *map(chr, range(256, 256 + 256 - len(plain))), *(a + b for a, b in made.merges)]
    assert made.encode(other).tolist() == [tokens.index(symbol) for word in symbols for symbol in word]


def test_bpe_learns_the_same_every_time_and_from_its_text_alone() -> None:
    made = BPE.learnt(VERSE, 300)
    assert all(BPE.learnt(VERSE, 300) == made for _ in range(5))
    assert made.size < 300  # nothing else occurs twice
    assert BPE.learnt("", 300).size == 256 and BPE.learnt("", 300).encode("a").tolist() == [ord("a") - 0x21]


def test_two_merges_that_make_the_same_token() -> None:
    made = BPE.from_facts({"merges": ["a b", "b c", "ab c", "a bc"]})
    assert made.size == 256 + 3
    assert made.decode(made.encode("abcabbc")) == "abcabbc"


@pytest.mark.parametrize("size", [0, 256, 65537])
def test_bpe_of_a_wrong_size(size: int) -> None:
    with pytest.raises(UsageError, match=rf"257 to 65,536.*not {size}"):
        BPE.learnt(VERSE, size)


def test_a_text_that_goes_on() -> None:
    made = BPE.learnt(VERSE, 300)
    ids, spaced = begun(made, "And the ")
    assert spaced is not None and made.decode(ids) == "And the"
    assert [made.decode(np.array([one]))[0] == " " for one in np.flatnonzero(~spaced) if one >= 256].count(True) == 0
    assert all(made.spelt[one][:1] == b" " for one in np.flatnonzero(spaced)) and spaced.sum() > 5
    for tokenizer, words in ((made, "And the"), (made, "line\n"), (Bytes(), "And "), (made, "")):
        ids, spaced = begun(tokenizer, words)
        assert spaced is None and tokenizer.decode(ids) == words


DOUBLED = [f"{'a' * 2**power} {'a' * 2**power}" for power in range(16)]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("characters", {}),
        ("characters", {"alphabet": ""}),
        ("characters", {"alphabet": ["a"]}),
        ("characters", {"alphabet": "ba"}),
        ("characters", {"alphabet": "aab"}),
        ("characters", {"alphabet": "a\ud800"}),
        ("bpe", {}),
        ("bpe", {"merges": "ab"}),
        ("bpe", {"merges": [["a", "b"]]}),
        ("bpe", {"merges": ["ab"]}),
        ("bpe", {"merges": ["a bc"]}),
        ("bpe", {"merges": ["a b", "a b"]}),
        ("bpe", {"merges": ["a  b"]}),
        ("bpe", {"merges": ["ab c", "a b"]}),
        ("bpe", {"merges": DOUBLED}),
        ("bpe", {"merges": ["a b"] * 70_000}),
    ],
)
def test_facts_of_a_foreign_folder_are_checked(name: str, facts: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        TOKENIZERS[name].from_facts(facts)


def test_no_token_is_longer_than_can_be_read_again() -> None:
    made = BPE.learnt(" ".join(["=" * 500] * 9), 400)
    assert max(len(first + second) for first, second in made.merges) <= LONGEST
    assert BPE.from_facts(made.facts) == made


def test_pieces_end_with_lines_and_are_the_text() -> None:
    long = ("x" * 1000 + "\n") * 2100 + "y" * (PIECE + 5)
    parts = list(pieces(long))
    assert "".join(parts) == long and max(map(len, parts)) <= PIECE and len(parts) == 5
    assert all(part.endswith("\n") for part in parts[:3]) and list(pieces("")) == []
