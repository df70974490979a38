"""Mandarin syllables in zhuyin (bopomofo), and in pinyin as ISO 7098 spells them."""

import re


def _table(text: str) -> dict[str, str]:
    return dict(re.findall("([\u3105-\u3129]+)([a-zêü]+)", text))


INITIALS = _table("ㄅb ㄆp ㄇm ㄈf ㄉd ㄊt ㄋn ㄌl ㄍg ㄎk ㄏh ㄐj ㄑq ㄒx ㄓzh ㄔch ㄕsh ㄖr ㄗz ㄘc ㄙs")
FINALS = _table(
    "ㄚa ㄛo ㄜe ㄝê ㄞai ㄟei ㄠao ㄡou ㄢan ㄣen ㄤang ㄥeng ㄦer "
    "ㄧi ㄧㄚia ㄧㄛio ㄧㄝie ㄧㄞiai ㄧㄠiao ㄧㄡiu ㄧㄢian ㄧㄣin ㄧㄤiang ㄧㄥing "
    "ㄨu ㄨㄚua ㄨㄛuo ㄨㄞuai ㄨㄟui ㄨㄢuan ㄨㄣun ㄨㄤuang ㄨㄥong ㄩü ㄩㄝüe ㄩㄢüan ㄩㄣün ㄩㄥiong"
)
ALONE = {"i": "yi", "iu": "you", "in": "yin", "ing": "ying", "u": "wu", "ui": "wei", "un": "wen", "ong": "weng"}
"""How finals are spelled without an initial where y or w does not just take the place of i or u."""


def pinyin(zhuyin: str) -> str | None:
    """A syllable without its tone: ㄒㄩㄝ is xue, ㄨㄥ is weng, ㄕ is shi. None for anything else, such as ㄅ alone."""
    initial = INITIALS.get(zhuyin[:1], "")
    rest = zhuyin[1:] if initial else zhuyin
    if rest not in FINALS and (rest or initial not in ("zh", "ch", "sh", "r", "z", "c", "s")):
        return None
    final = FINALS.get(rest, "i")
    if initial:
        return initial + (final.replace("ü", "u") if initial in ("j", "q", "x") else final)
    return ALONE.get(final) or re.sub("^ü", "yu", re.sub("^i", "y", re.sub("^u", "w", final)))
