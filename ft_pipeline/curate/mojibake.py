"""UTF-8 that was read as Windows-1252 or Latin-1: certain sequences only, because real text ends words in capitals and quotes.

ftfy 6.3.1 was tried: it flags Portuguese capitals before a quote, cubic angstroms and quantum operators, and misses more.
"""

from __future__ import annotations

import re

REPLACEMENT = "\ufffd"
"""What a decoder writes where bytes were lost."""


AROUND = 20


def _read_as_cp1252(first: int, last: int) -> str:
    """The characters that bytes become; the five that Windows-1252 leaves out stay controls, as do all in Latin-1."""
    texts = (bytes([b]).decode(codec, "ignore") for b in range(first, last + 1) for codec in ("cp1252", "latin-1"))
    return "".join(sorted(set("".join(texts))))


def _any_of(characters: str) -> str:
    return "[" + "".join(f"\\u{ord(c):04x}" for c in characters) + "]"


BEHIND = _read_as_cp1252(0x80, 0xBF)
"""What the second and later bytes of a UTF-8 character become."""
MARKS = "\u00a9\u00ae\u2122\u2020\u2021\u00a7\u00b6"
"""Copyright, registered, trade mark, daggers, section, paragraph: they do follow a name."""
WRITTEN = (
    "\u2018\u2019\u201a\u201c\u201d\u201e\u2026\u2013\u2014\u2022\u2039\u203a\u00ab\u00bb\u00b7\u00b4\u00a0\u00a1\u00bf"
    "\u00aa\u00ba\u00b0\u00b1\u00b2\u00b3\u00b9"
)
"""Punctuation, powers and signs that do follow an accented capital: a closing quote, 35 cubic angstroms."""
ODD = "".join(c for c in BEHIND if c not in MARKS + WRITTEN)
"""What follows no letter in any language."""
SMALL = "[a-z\\u00df-\\u00f6\\u00f8-\\u00ff]"
LETTER = "[^\\W\\d_]"
TWO = "\\u00c2-\\u00d6\\u00d8-\\u00de"
"""First bytes of two-byte characters, but for the multiplication sign and sharp s, which stand before anything."""
_B, _O, _M, _OM = (_any_of(c) for c in (BEHIND, ODD, MARKS, ODD + MARKS))
_HEBREW = _any_of(_read_as_cp1252(0x90, 0xAA))
_WHOLE = f"(?:[{TWO}]{_B}|\\u00d7{_HEBREW}|[\\u00e0-\\u00ef]{_B}{{2}}|\\u00f0{_B}{{3}})"

# one class at the start: the engine then skips what cannot begin a sequence
PATTERN = re.compile(
    f"[\\u00c2-\\u00f0](?={_B})(?:"
    f"(?<=[\\u00c2-\\u00c5]){_O}"  # Latin letters and signs
    f"|(?<={SMALL}[{TWO}]){_B}"
    f"|(?<=\\u00c3)(?<!{LETTER}.){_B}(?={SMALL})"
    f"|(?<=[\\u00c2\\u00c3])(?<!{LETTER}.){_M}|(?<=[\\u00c2-\\u00c5]){_M}(?={SMALL})"
    f"|(?<=\\u00c2)(?<!{LETTER}.)\\u00b0"  # degrees
    f"|(?<=\\u00e2)(?:[\\u20ac\\u0080]|{_B}{_OM}|{_OM}{_B})"  # quotes, dashes, arrows
    f"|(?<=\\u00e1)(?:\\u00ba{_B}|\\u00bb[{_O[1:-1]}\\u2020\\u2021\\u00a7\\u00b6])"  # Vietnamese
    f"|(?<=\\u00e3)[\\u20ac\\u0080\\u0081\\u201a\\u0082\\u0192\\u0083]{_B}"  # kana
    "|(?<=\\u00ef)(?:\\u00bb\\u00bf|\\u00bf\\u00bd)"  # byte order mark, a lost character
    f"|(?<=\\u00f0)[\\u0178\\u009f]{_B}"  # emoji
    f"|(?<=[\\u00e0-\\u00ef]){_O}{{2}}"
    f"|(?P<run>(?:(?<=[{TWO}]){_B}|(?<=\\u00d7){_HEBREW}|(?<=[\\u00e0-\\u00ef]){_B}{{2}}|(?<=\\u00f0){_B}{{3}}){_WHOLE}+))"
)
_TELLING = frozenset(ODD + MARKS)


def mojibake_in(text: str) -> str | None:
    """The first broken place with what is around it; None in sound text and, at no cost, in ASCII."""
    if text.isascii():
        return None
    if (lost := text.find(REPLACEMENT)) >= 0:
        return _around(text, lost, lost + 1)
    for match in PATTERN.finditer(text):
        # a run of punctuation alone can be real: quotes within quotes
        if match["run"] is None or not _TELLING.isdisjoint(match["run"]):
            return _around(text, match.start(), match.end())
    return None


def _around(text: str, start: int, end: int) -> str:
    return text[max(0, start - AROUND) : end + AROUND]
