"""Formulas of Word (OMML) as a line of text: 1/2, x^2, √(a + b)."""

from __future__ import annotations

from collections.abc import Callable

from latentrag.corpus.notation import fraction
from latentrag.corpus.ooxml import Element


def formula(math: Element) -> str:
    """The formula in one line."""
    shown = _SHOWN.get(math.tag)
    return math.text if math.tag == "t" else shown(math) if shown else "".join(map(formula, math.children))


def _of(math: Element, tag: str) -> str:
    return formula(math.first(tag))


def _scripts(math: Element) -> str:
    marks = (("_", _of(math, "sub")), ("^", _of(math, "sup")))
    return "".join(mark + _grouped(text) for mark, text in marks if text)


def _grouped(text: str) -> str:
    return text if len(text) < 2 or text.isalnum() else f"({text})"


def _root(math: Element) -> str:
    degree = _of(math, "deg")
    return f"{degree if degree != '2' else ''}√({_of(math, 'e')})"


def _delimited(math: Element) -> str:
    marks = {child.tag: child.value for child in math.first("dPr").children}
    return f"{marks.get('begChr', '(')}{', '.join(map(formula, math.all('e')))}{marks.get('endChr', ')')}"


def _sum(math: Element) -> str:
    return f"{math.first('naryPr', 'chr').value or '∫'}{_scripts(math)} {_of(math, 'e')}"


def _matrix(math: Element) -> str:
    return "; ".join(", ".join(map(formula, row.all("e"))) for row in math.all("mr"))


_SHOWN: dict[str, Callable[[Element], str]] = {
    "f": lambda math: fraction(_of(math, "num"), _of(math, "den")),
    "sSup": lambda math: _of(math, "e") + _scripts(math),
    "sSub": lambda math: _of(math, "e") + _scripts(math),
    "sSubSup": lambda math: _of(math, "e") + _scripts(math),
    "sPre": lambda math: _scripts(math) + _of(math, "e"),
    "rad": _root,
    "d": _delimited,
    "nary": _sum,
    "func": lambda math: f"{_of(math, 'fName')} {_of(math, 'e')}",
    "m": _matrix,
}
