"""MediaWiki's templates that stand within sentences, and what they show there. All others are not shown.

Templates are programs that a wiki runs; of these few, used a million times each, the text follows from the arguments.
"""

from __future__ import annotations

import re
from calendar import month_name
from collections.abc import Callable, Mapping

from latentrag.corpus.notation import fraction, raised

Arguments = Mapping[str, str]
"""The arguments of a template as text, under their names; those without one are called "1", "2", …"""

_LITERAL = {
    **dict.fromkeys(("ndash", "endash", "en dash", "–"), "–"),
    **dict.fromkeys(("mdash", "emdash", "em dash", "—"), "—"),
    **dict.fromkeys(("snd", "spnd", "spaced ndash", "spaced en dash", "dash"), " – "),
    **dict.fromkeys(("smd", "spaced mdash", "spaced em dash"), " — "),
    **dict.fromkeys(("nbsp", "sp", "space", "thinsp", "hair space", "thin space", "spaces"), " "),
    **dict.fromkeys(("·", "dot", "middot", "•", "bullet"), " · "),
    **dict.fromkeys(("minus", "−"), "−"),
    "!": "|",
    "=": "=",
    "'": "'",
    "nbhyph": "-",
    "times": "×",
    "pm": "±",
    "prime": "′",
    "half": "1/2",
}
_FIRST_SHOWN = frozenset(
    "abbr abbrlink angbr big bold boldital em flagcountry flag ill interlanguage_link interlanguage_link_multi ill-wd2 "
    "italic italics keypress kbd linktext math mvar nobold nobr nohyphen noitalic not_a_typo nowrap no_wrap nts num "
    "proper_name sc sic small smallcaps strong tooltip underline var visible_anchor vanchor dfn ship_name quote "
    "blockquote cquote quotation block_quote chem2 10000 bsplit nwr code".split()
)
_SECOND_SHOWN = frozenset("lang transliteration transl xlit color colour font_color hover_title".split())
# As they are written: {{ms}} is a language.
_SHIPS = frozenset(
    "DHS FV GTS HDMS HMAS HMCS HMIS HMNZS HMS HMT HNLMS HNoMS HSwMS IJN INS JDS JNS MF MS MSC MTS MV RFA RMS RNLB RV "
    "SMS SNS SS SSV STV TSS USAT USAV USCGC USNS USRC USS".split()
)
_MONEY = {
    **dict.fromkeys(("us$", "usd"), "US$"),
    **dict.fromkeys(("£", "gbp", "pound sterling"), "£"),
    **dict.fromkeys(("€", "eur", "euro"), "€"),
    **dict.fromkeys(("₹", "inr", "indian rupee"), "₹"),
    **dict.fromkeys(("¥", "yen"), "¥"),
    "a$": "A$",
    "c$": "C$",
}
_RANGES = frozenset("- – to and or by x × +/- ± & to(-) and(-) / +".split())
_NUMBER = re.compile(r"[+\-−]?[\d.,/+]+")
_DIGITS = re.compile(r"(?<![\d.])\d{4,}(?!\d)")
_FUNCTIONS: Mapping[str, Callable[[str], str]] = {
    "formatnum": lambda text: _DIGITS.sub(lambda found: f"{int(found[0]):,}", text),
    "lc": str.lower,
    "uc": str.upper,
    "lcfirst": lambda text: text[:1].lower() + text[1:],
    "ucfirst": lambda text: text[:1].upper() + text[1:],
}


def shown(name: str) -> Callable[[Arguments], str] | None:
    """What makes a template's text from its arguments; None for one that is not shown."""
    function, colon, text = name.partition(":")
    if colon and (made := _FUNCTIONS.get(function.strip().lower())):
        return lambda arguments: text.strip() if arguments.get("1") == "R" else made(text.strip())
    if name in _SHIPS:
        return lambda arguments: _ship(name, arguments)
    name = " ".join(name.replace("_", " ").split()).lower()
    key = name.replace(" ", "_")
    if key in _FIRST_SHOWN or name.startswith("lang-"):
        return _first
    if key in _SECOND_SHOWN:
        return lambda arguments: arguments.get("2") or arguments.get("1", "")
    sign = _LITERAL.get(name) or _MONEY.get(name)
    return _MADE.get(name) if sign is None else lambda arguments: sign + arguments.get("1", "") * (name in _MONEY)


def _first(arguments: Arguments) -> str:
    return next(filter(None, map(arguments.get, ("lt", "1", "text", "quote"))), "")


def _ship(prefix: str, arguments: Arguments) -> str:
    """{{USS|Petrel|SS-178}}: USS Petrel (SS-178); with 2 as the third argument the number is not shown."""
    number = arguments.get("2") if arguments.get("3", "") in ("", "3", "5") else ""
    return f"{prefix} {arguments.get('1', '')} ({number})" if number else f"{prefix} {arguments.get('1', '')}"


def _measure(arguments: Arguments) -> str:
    """{{convert|5|to|6|km}}: 5 to 6 km; {{convert|6|ft|2|in|cm}}: 6 ft 2 in. What it is converted to is not shown."""
    values = [arguments.get(str(i), "") for i in range(1, 10)]
    end = 2
    while end + 1 < len(values) and values[end - 1].lower() in _RANGES:
        end += 2
    while end + 1 < len(values) and _NUMBER.fullmatch(values[end]) and values[end + 1][:1].isalpha():
        end += 2
    return " ".join(filter(None, values[:end]))


def _height(arguments: Arguments) -> str:
    units = [unit for unit in ("m", "cm", "ft", "in") if unit in arguments]
    return " ".join(f"{arguments[unit]} {unit}" for unit in units) or _measure(arguments)


def _fraction(arguments: Arguments) -> str:
    """{{frac|1|2}}: 1/2; {{frac|3|1|2}}: 3 1/2; {{frac|2}}: 1/2."""
    parts = [arguments[str(i)] for i in range(1, 4) if str(i) in arguments]
    whole = f"{parts.pop(0)} " if len(parts) == 3 else ""
    return whole + fraction(*(parts if len(parts) == 2 else ["1", *parts])) if parts else ""


def _value(arguments: Arguments) -> str:
    """{{val|6.02|e=23|u=mol}}: 6.02×10^23 mol."""
    error = f"±{arguments['2']}" if arguments.get("2") else ""
    power = f"×10^{arguments['e']}" if arguments.get("e") else ""
    unit = arguments.get("u") or arguments.get("ul") or ""
    return f"{arguments.get('1', '')}{error}{power} {unit}".rstrip()


def _circa(arguments: Arguments) -> str:
    return " – ".join(f"circa {arguments[i]}" for i in ("1", "2") if arguments.get(i)) or "circa"


def _as_of(arguments: Arguments) -> str:
    """{{as of|2010|5}}: As of May 2010."""
    parts = [arguments.get(i, "") for i in ("3", "2", "1")]
    if parts[1].isdecimal() and 1 <= int(parts[1]) <= 12:
        parts[1] = month_name[int(parts[1])]
    before = "Since" if arguments.get("since") else "As of"
    before = before.lower() if arguments.get("lc") else before
    return arguments.get("alt") or " ".join(filter(None, (before, *parts)))


def _nihongo(arguments: Arguments) -> str:
    inside = ", ".join(filter(None, (arguments.get("2"), arguments.get("3"))))
    return f"{arguments.get('1', '')} ({inside})".strip() if inside else arguments.get("1", "")


def _joined(arguments: Arguments) -> str:
    return "".join(text for name, text in arguments.items() if name.isdecimal())


def _raised(arguments: Arguments) -> str:
    return raised(arguments.get("1", ""))


_MADE: Mapping[str, Callable[[Arguments], str]] = {
    **dict.fromkeys(("convert", "cvt"), _measure),
    "height": _height,
    **dict.fromkeys(("frac", "sfrac", "fraction", "vulgar fraction"), _fraction),
    **dict.fromkeys(("circa", "c.", "ca.", "circa."), _circa),
    **dict.fromkeys(("as of", "asof"), _as_of),
    **dict.fromkeys(("sup", "superscript"), _raised),
    **dict.fromkeys(("sub", "subscript", "gaps", "chem"), _joined),
    **dict.fromkeys(("nihongo", "nihongo3", "nihongo krt"), _nihongo),
    "val": _value,
    "e": lambda arguments: f"×10^{arguments.get('1', '')}",
    "10^": lambda arguments: f"10^{arguments.get('1', '')}",
    "su": lambda arguments: f"{arguments.get('b', '')}{raised(arguments.get('p', ''))}",
    "deg": lambda arguments: f"{arguments.get('1', '')}°",
    "sqrt": lambda arguments: f"√{arguments.get('1', '')}",
    "ship": lambda arguments: " ".join(filter(None, (arguments.get("1"), arguments.get("2")))),
    **dict.fromkeys(
        ("sclass", "sclass2"), lambda arguments: f"{arguments.get('1', '')}-class {arguments.get('2', '')}".strip()
    ),
}
