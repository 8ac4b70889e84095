"""What plain text has no place for, and what stands for it there: powers, fractions, numbers of lists, symbol fonts."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+\-−–]?\d[\d.,/]*|[+\-−–]|[^\W\d_]?[+\-−–]|\d*[^\W\d_](?!\w)")
_SIMPLE = re.compile(r"[\w.,]+")
_LONG = re.compile(r"[\w.,+\-−–×·/()=*^]+")
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"))
_ROMAN_BELOW_40 = ((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))
# The upper halves of two fonts whose characters have codes of their own; "�" is one that Unicode does not have.
_SYMBOL = {
    0x20: " !∀#∃%&∋()∗+,−./0123456789:;<=>?≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_‾αβχδεφγηιϕκλμνοπθρστυϖωξψζ{|}∼",
    0xA0: "€ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓°±″≥×∝∂•÷≠≡≈…⏐⎯↵ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓◊〈®©™∑⎛⎜⎝⎡⎢⎣⎧⎨⎩⎪",
    0xF1: "〉∫⌠⎮⌡⎞⎟⎠⎤⎥⎦⎫⎬⎭",
}
_WINGDINGS = {
    0x46: "☞", 0x6C: "●", 0x6D: "❍", 0x6E: "■", 0x6F: "□", 0x71: "❑", 0x72: "❒", 0x73: "⬧", 0x74: "⧫", 0x75: "◆",
    0x76: "❖", 0x9F: "•", 0xA7: "▪", 0xA8: "◻", 0xD8: "➢", 0xDF: "←", 0xE0: "→", 0xE1: "↑", 0xE2: "↓", 0xE7: "🡐",
    0xE8: "➔", 0xEF: "⇦", 0xF0: "⇨", 0xF1: "⇧", 0xF2: "⇩", 0xF3: "⇔", 0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑",
    0x2A: "🖂", 0x28: "☎", 0x4A: "☺", 0x4C: "☹", 0x4D: "💣", 0x80: "⓪", 0x81: "①", 0x82: "②", 0x83: "③", 0x84: "④",
    0x85: "⑤", 0x86: "⑥", 0x87: "⑦", 0x88: "⑧", 0x89: "⑨", 0x8A: "⑩",
}  # fmt: skip
NO_CHARACTER = "�"


def raised(text: str) -> str:
    """A superscript: ``^`` and the text where it is a power, an index or a mark; itself where it is the end of a word,
    as in 4th. Not ¹⁰: the normal form that tokenizers and searches make of 10¹⁰ is 1010."""
    stripped = text.strip()
    if not _NUMBER.fullmatch(stripped) and not (any(map(str.isdigit, stripped)) and _LONG.fullmatch(stripped)):
        return text
    return text.replace(stripped, f"^{stripped}" if _NUMBER.fullmatch(stripped) else f"^({stripped})", 1)


def fraction(above: str, below: str) -> str:
    """In one line: 1/2, (a + b)/c."""
    sides = (side.strip() for side in (above, below))
    return "/".join(side if _SIMPLE.fullmatch(side) else f"({side})" for side in sides)


def symbol(font: str, code: int) -> str:
    """The character that a symbol font shows for a code from 0x20 to 0xFF; ``NO_CHARACTER`` if none is known."""
    if font.lower() == "symbol":
        found = (line[code - start] for start, line in _SYMBOL.items() if 0 <= code - start < len(line))
        return next(found, NO_CHARACTER)
    return _WINGDINGS.get(code, NO_CHARACTER) if font.lower() == "wingdings" else NO_CHARACTER


def numbered(number: int, style: str) -> str:
    """A number as OOXML's styles of lists write it; in digits for a style that is not known."""
    if style in ("lowerLetter", "upperLetter") and number > 0:
        text = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1)
    elif style in ("lowerRoman", "upperRoman"):
        text = ""
        for value, digits in (*_ROMAN, *_ROMAN_BELOW_40):
            text += digits * (number // value)
            number %= value
    else:
        text = f"{number:02}" if style == "decimalZero" else str(number)
    return text.upper() if style.startswith("upper") else text
