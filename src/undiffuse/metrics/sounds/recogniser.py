"""Words that a speech recogniser hears: PocketSphinx (Huggins-Daines et al. 2006) with its own English model."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from undiffuse.errors import UsageError
from undiffuse.metrics.sounds.packages import RATE, at_16_khz, missing
from undiffuse.names import listed
from undiffuse.randomness import Purpose, stream

PAUSE = RATE // 4  # samples; the recogniser expects speech to begin and end in silence
LEVEL, NOISE = 300.0, 12.0
"""Root mean squares of a sound and of the noise added to it: the recogniser has never heard digital silence."""
WORD = re.compile(r"[a-z]+('[a-z]+)?")


def recognise(
    rows: np.ndarray, rate: int, words: Sequence[str], tick: Callable[[int], None] | None = None
) -> list[str | None]:
    """Which of `words` each int16 row (N, L) at `rate` Hz is heard as; None where it is heard as none of them.

    Each row is decoded by itself, so the result does not depend on the others. `tick(1)` is called after each.
    Raises UsageError if PocketSphinx is not installed or does not know the words: lower-case English ones.
    """
    decoder, heard = _decoder(words), []
    for row in at_16_khz(rows, rate):
        decoder.start_utt()
        decoder.process_raw(_in_a_room(row).tobytes(), full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        heard.append(hypothesis.hypstr if hypothesis and hypothesis.hypstr else None)
        if tick:
            tick(1)
    return heard


def _in_a_room(row: np.ndarray) -> np.ndarray:
    """int16 (L,), at any level -> int16 (L + 2 PAUSE,), at one level, with pauses and a little noise."""
    x = np.pad(row.astype(np.float64), PAUSE)
    loudness = np.sqrt(np.square(row.astype(np.float64)).mean())
    x *= LEVEL / max(loudness, 1)
    x += NOISE * stream(0, Purpose.NOISE).standard_normal(len(x))
    return np.rint(x).clip(-32768, 32767).astype(np.int16)


def _decoder(words: Sequence[str]) -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise missing("pocketsphinx") from None
    decoder = Decoder(samprate=RATE, lm=None, loglevel="FATAL")
    unknown = [word for word in words if not WORD.fullmatch(word) or decoder.lookup_word(word) is None]
    if unknown:
        raise UsageError(f"pocketsphinx does not know the words {listed(unknown)}: it hears lower-case English words")
    decoder.add_jsgf_string("words", f"#JSGF V1.0; grammar words; public <word> = {' | '.join(words)};")
    decoder.activate_search("words")
    return decoder
