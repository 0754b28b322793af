"""Broken text is found in every script, sound text in none is taken for broken."""

from __future__ import annotations

import pytest

from ft_pipeline.curate.mojibake import mojibake_in

SOUND = [
    "L'\u00e9t\u00e9, \u00e0 No\u00ebl, \u0153uvre na\u00efve : \u00ab voil\u00e0\u2026 \u00bb \u201c\u00e7a\u201d \u2013 l\u2019\u00e2me",
    "CAF\u00c9\u00bb, \u00ab\u00c9T\u00c9\u00bb, il est all\u00e9\u2026\u00bb et d\u00e9j\u00e0\u00b9",
    "\u201eDas macht Spa\u00df\u201c \u2013 Spa\u00df\u2026 \u201e\u00dc\u201c, \u201a\u00d6\u2019",
    "MANH\u00c3\u2026 \u201cAMANH\u00c3\u201d \u2013 N\u00c3O, a letra \u00ab\u00c3\u00bb, SE\u00c7\u00c3O N\u00ba 5, MANH\u00c3\u00a0",
    "35 \u00c5\u00b3, 120 \u00c5\u00b2, 1.5 \u00c5\u00b10.2, operator \u00c2\u00b2, \u00c2\u00b7B, 2\u00d7\u00bd\u00d7\u00bd",
    "Nescaf\u00e9\u00ae\u201d, MANH\u00c3\u00ae, ROS\u00c9\u00a9 2020, Pok\u00e9mon\u2122",
    "h\u00e2l\u00e2\u2026\u201d, gyda\u2019r plant a \u00e2\u2019r dref",
    "C\u1ed9ng h\u00f2a x\u00e3 h\u1ed9i ch\u1ee7 ngh\u0129a Vi\u1ec7t Nam, \u0111\u1ed9c l\u1eadp \u2013 t\u1ef1 do \u2013 h\u1ea1nh ph\u00fac: \u201c\u00c2, \u00ca, \u00d4\u201d",
    "\u201c\u0110\u00c2\u2026 \u0110\u00c3\u2013 \u0110\u00c3\u2019s \u0110\u00c3\u00ae, \u0414\u00c2\u00b0",
    "ESPA\u00d1A, \u00bfqu\u00e9? \u00a1Ol\u00e9! est\u00e1\u00bb\u2026",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043a\u0430\u043a \u0434\u0435\u043b\u0430? \u2014 \u00ab\u0425\u043e\u0440\u043e\u0448\u043e\u00bb\u2026",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \ud55c\uad6d\uc5b4 \u05e9\u05dc\u05d5\u05dd \U0001f600 5\u20ac",
    "p\u00e5 \u201c\u00c5\u201d, SM\u00d6RG\u00c5S\u2026 \u00d8\u201d, \u00d0e, \u00de",
]
BROKEN = [
    "caf\u00e9s", "l\u2019\u00e9t\u00e9", "\u201cquoted\u201d", "it\u2019s", "\u00dcbung", "Stra\u00dfe", "S\u00e3o Paulo n\u00e3o \u00e9", "10 \u00b0C", "m\u00b2",
    "\u00a35", "\u00a9 2020", "TM\u2122", "em \u2014 dash", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u4f60\u597d\u4e16\u754c\uff0c\u6d4b\u8bd5", "Ti\u1ebfng Vi\u1ec7t",
    "\u0111\u01b0\u1ee3c", "\u0141\u00f3d\u017a", "r\u0119ka", "\u015fimdi", "\U0001f600", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627",
    "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\ud55c\uad6d\uc5b4", "\u65e5\u672c\u8a9e",
    "\u2192", "\u2713 ok", "\u00bd cup", "\u00c5lesund", "c\u0153ur", "\ufeffstart", "\ufffd",
]  # fmt: skip


def broken(text: str, codec: str) -> str:
    """Its UTF-8 bytes read in another code; a byte without a character becomes the control of its number."""
    return "".join(bytes([b]).decode(codec, "ignore") or chr(b) for b in text.encode())


@pytest.mark.parametrize("text", SOUND)
def test_real_text_is_sound(text):
    assert mojibake_in(text) is None


@pytest.mark.parametrize("codec", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", BROKEN)
def test_misread_utf8_is_found(text, codec):
    assert mojibake_in(text) is None or "\ufffd" in text
    found = mojibake_in(f"so {broken(text, codec)}.")
    assert found is not None
    assert found in f"so {broken(text, codec)}."


def test_a_lost_character_is_found_and_quoted_with_its_surroundings():
    assert mojibake_in("a" * 100 + "\ufffd" + "b" * 100) == "a" * 20 + "\ufffd" + "b" * 20
