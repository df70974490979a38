"""Speech made by the program espeak-ng."""

import re
import shutil
import subprocess
from pathlib import Path

from undiffuse.data.reading import reading

SECONDS = 20  # for one word; it takes a hundredth of one


def speak(program: Path, voice: str, word: str, pitch: int = 50, speed: int = 160) -> bytes:
    """A word in American English, as a WAV file of 16 bits at 22,050 Hz. The same arguments give the same bytes.

    voice is the file of one of espeak-ng's variants. Raises UndiffuseError if the program fails.
    """
    return _run(program, "-v", f"en-us+{voice}", "-p", str(pitch), "-s", str(speed), "--stdout", "--", word)


def voices(program: Path) -> list[str]:
    """Its variants, sorted, without those that say "seven" just as an earlier one does."""
    listed = _run(program, "--voices=variant").decode()
    names = sorted(re.findall(r"!v/(.+?) *(?:\(.*)?$", listed, re.MULTILINE))
    different = {speak(program, name, "seven"): name for name in reversed(names)}
    return sorted(different.values())


def find() -> Path | None:
    """The program, or None if it is not on this machine."""
    found = shutil.which("espeak-ng")
    return Path(found) if found else None


def version(program: Path) -> str:
    """Its name and version."""
    return _run(program, "--version").decode().partition("Data at")[0].strip()


def _run(program: Path, *options: str) -> bytes:
    with reading(f"what espeak-ng prints ({' '.join(options)})"):
        return subprocess.run(
            [program, *options], capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=True
        ).stdout
