"""The named sets of speech: found where their packages install them, or spoken by a synthesiser."""

import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np

from undiffuse.data import espeak
from undiffuse.data.clips import Clips, SoundSource
from undiffuse.data.corpora import DIGITS
from undiffuse.data.folder import labelled, stamps
from undiffuse.data.splits import held_out
from undiffuse.data.zhuyin import pinyin
from undiffuse.errors import UndiffuseError

FORM = 3
"""Counts up when the form of one of them changes, so that no cache of the old one is used."""


@dataclass(frozen=True)
class Named:
    """A named set of sounds.

    count    how many sounds it has, about
    rate     what `load_sounds` gives them, in Hz
    find     the folder or the program that it is made from, None if it is not on this machine
    source   opens it
    """

    name: str
    summary: str
    count: int
    rate: int
    licence: str
    how_to_get: str
    find: Callable[[], Path | None]
    opened: Callable[[Path, str], SoundSource]

    def source(self) -> SoundSource:
        """Raises UndiffuseError with the command that gets it if it is not on this machine."""
        place = self.find()
        if place is None:
            raise UndiffuseError(f"{self.name} is not on this machine: `{self.how_to_get}`")
        return self.opened(place, self.licence)


def _folder(name: str, system: str, pattern: str) -> Path | None:
    """$UNDIFFUSE_DATA/<name>, else where the Debian package puts it: the first that holds a file of this pattern."""
    places = [Path(system)]
    if chosen := os.environ.get("UNDIFFUSE_DATA"):
        places.insert(0, Path(chosen).expanduser() / name)
    return next((place for place in places if next(place.glob(pattern), None)), None)


SYLLABLE = re.compile(r"(?P<letters>[\u3105-\u3129]+)(?P<tone>[1-4]?)")
TONES = {"": 1, "2": 2, "3": 3, "4": 4, "1": 5}
"""What the end of a folder's name says: the tone, 5 for the neutral one."""
MARKED = {1: "{}", 2: "{}ˊ", 3: "{}ˇ", 4: "{}ˋ", 5: "˙{}"}
"""Where zhuyin marks the tone."""
VOICES = {"3": "Edward Liu", "5": "Chu Lo"}


def _syllables(root: Path, licence: str) -> SoundSource:
    """One file for each syllable and voice: ㄅㄚ3/5.ogg is bǎ by Chu Lo.

    The class is the tone, since the 1,200 syllables would be too many. The caption is the syllable in pinyin as it is
    typed, with v for ü, since encoders of sentences know neither accents nor zhuyin; attributes are the voice, zhuyin,
    and the pinyin without its tone. Left out are 16 recordings of what letters alone, such as ㄅ, are called.
    """
    files, voices, letters, syllables, tones = [], [], [], [], []
    for file in sorted(root.glob("*/*.ogg")):
        found = SYLLABLE.fullmatch(file.parent.name)
        if found and file.stem in VOICES and (syllable := pinyin(found["letters"])):
            files.append(file)
            voices.append(VOICES[file.stem])
            letters.append(found["letters"])
            syllables.append(syllable)
            tones.append(TONES[found["tone"]])

    def opened() -> Clips:
        labels, classes = labelled([f"tone {number}" for number in tones])
        zhuyin = [MARKED[number].format(letter) for letter, number in zip(letters, tones, strict=True)]
        typed = [f"{syllable}{number}".replace("ü", "v") for syllable, number in zip(syllables, tones, strict=True)]
        return Clips(
            names=tuple(f"{file.parent.name}/{file.name}" for file in files),
            place=lambda index: files[index],
            rate=16_000,
            labels=labels,
            classes=classes,
            captions=tuple((one,) for one in typed),
            attributes={"voice": tuple(voices), "syllable": tuple(syllables), "zhuyin": tuple(zhuyin)},
            licence=licence,
        )

    return _stamped("syllables", root, files, opened)


def _prompts(root: Path, licence: str) -> SoundSource:
    """A telephone's phrases. The class is the folder, "phrases" for those in none; the caption is the file's name.

    Without silence/, which has nothing else.
    """
    files = [file for file in sorted(root.rglob("*.wav")) if file.parent.name != "silence"]

    def opened() -> Clips:
        labels, classes = labelled(["phrases" if file.parent == root else file.parent.name for file in files])
        return Clips(
            names=tuple(file.relative_to(root).as_posix() for file in files),
            place=lambda index: files[index],
            labels=labels,
            classes=classes,
            captions=tuple((" ".join(re.split("[-_]+", file.stem)),) for file in files),
            licence=licence,
        )

    return _stamped("prompts", root, files, opened)


def _stamped(name: str, root: Path, files: Sequence[Path], opened: Callable[[], Clips]) -> SoundSource:
    relative = [PurePosixPath(file.relative_to(root).as_posix()) for file in files]
    return SoundSource([name, FORM, str(root.resolve()), stamps(root, relative)], opened)


PITCHES, SPEEDS = (30, 50, 70), (170, 210)
"""As espeak-ng counts them: 0 to 99, and words a minute."""


def _digits_spoken(program: Path, licence: str) -> SoundSource:
    """Synthetic: zero to nine by each variant of espeak-ng's English, in three pitches and two speeds.

    The test split is every word of the voices held out, a tenth of them. Attributes are the voice, its pitch and its
    speed. Loading it the first time takes 64 s of processor time.
    """

    def opened() -> Clips:
        known = espeak.voices(program)
        unseen = {known[index] for index in np.flatnonzero(held_out(len(known)))}
        clips = list(product(DIGITS, known, PITCHES, SPEEDS))
        words, spoken_by, pitches, speeds = zip(*clips, strict=True)
        labels, classes = labelled(words)
        return Clips(
            names=tuple(f"{word}, {voice}, {pitch}, {speed}" for word, voice, pitch, speed in clips),
            place=lambda index: io.BytesIO(espeak.speak(program, clips[index][1], clips[index][0], *clips[index][2:])),
            rate=16_000,
            labels=labels,
            classes=classes,
            attributes={"voice": spoken_by, "pitch": tuple(map(str, pitches)), "speed": tuple(map(str, speeds))},
            test=np.array([voice in unseen for voice in spoken_by]),
            licence=licence,
        )

    return SoundSource(["digits-spoken", FORM, espeak.version(program)], opened)


SPEECH: dict[str, Named] = {
    one.name: one
    for one in (
        Named(
            "syllables",
            "Mandarin syllables by two people, 5 tones",
            2342,
            16_000,
            "GPL-3 or LGPL-3 (Edward Liu), CC BY 3.0 (ChionMeilin with Chu Lo)",
            "sudo apt-get install gcin-voice",
            lambda: _folder("syllables", "/usr/share/gcin-voice/ogg", "*/*.ogg"),
            _syllables,
        ),
        Named(
            "digits-spoken",
            "zero to nine by espeak-ng: synthetic voices",
            5940,
            16_000,
            "made by espeak-ng (GPL-3 or later)",
            "sudo apt-get install espeak-ng",
            espeak.find,
            _digits_spoken,
        ),
        Named(
            "prompts",
            "phrases of a telephone exchange by Allison Smith: digits, letters and others",
            558,
            8_000,
            "CC BY-SA 3.0 (Allison Smith, Digium)",
            "sudo apt-get install asterisk-core-sounds-en-wav",
            lambda: _folder("prompts", "/usr/share/asterisk/sounds/en_US_f_Allison", "**/*.wav"),
            _prompts,
        ),
    )
}
