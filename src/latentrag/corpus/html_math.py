"""Formulas of a web page as a line of text: as TeX where the page has it, else from MathML."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from latentrag.corpus.notation import fraction

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_MAX_DEPTH = 100
_TEX = 'annotation[encoding="application/x-tex"], annotation[encoding="TeX"], annotation[encoding="LaTeX"]'
_STYLED = re.compile(r"\{\\(?:display|text)style\s+(.*)\}", re.DOTALL)
_IGNORED = frozenset("annotation annotation-xml mphantom".split())


def formula(math: LexborNode) -> str:
    """The formula of a ``<math>`` element in one line."""
    noted = math.css_first(_TEX)
    tex = (noted.text() if noted is not None else math.attributes.get("alttext")) or ""
    styled = _STYLED.fullmatch(tex.strip())
    return " ".join((styled[1] if styled else tex or _shown(math)).split())


def _shown(node: LexborNode, depth: int = 0) -> str:
    if node.is_text_node:
        return " ".join((node.text_content or "").split())
    if not node.is_element_node or node.tag in _IGNORED or depth > _MAX_DEPTH:
        return ""
    parts = [part for part in (_shown(child, depth + 1) for child in node.iter(include_text=True)) if part]
    as_line = _LINES.get(node.tag or "")
    return as_line(parts) if as_line is not None and len(parts) > 1 else "".join(parts)


def _grouped(text: str) -> str:
    return text if len(text) < 2 or text.isalnum() else f"({text})"


def _scripted(*marks: str) -> Callable[[list[str]], str]:
    return lambda parts: parts[0] + "".join(mark + _grouped(part) for mark, part in zip(marks, parts[1:], strict=False))


_LINES: Mapping[str, Callable[[list[str]], str]] = {
    "mfrac": lambda parts: fraction(parts[0], parts[1]),
    "msup": _scripted("^"),
    "msub": _scripted("_"),
    "msubsup": _scripted("_", "^"),
    "mover": _scripted("^"),
    "munder": _scripted("_"),
    "munderover": _scripted("_", "^"),
    "mroot": lambda parts: f"{parts[1]}√({parts[0]})",
    "mtable": "; ".join,
    "mtr": ", ".join,
}
