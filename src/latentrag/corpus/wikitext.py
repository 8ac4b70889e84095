"""Wikitext → the text that a reader of the article sees."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any

from latentrag.corpus.formats import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mwparserfromhell.wikicode import Wikicode

_NO_TEXT = frozenset(
    "categorytree ce chem gallery graph hiero imagemap indicator inputbox mapframe maplink math ref references score "
    "section style syntaxhighlight source table templatedata templatestyles timeline".split()
)
_BREAKS = frozenset(("br", "hr", "p", "div", "blockquote", "poem", "pre"))
# Templates that stand in the middle of sentences, and which of their arguments are shown there.
_UNITS = frozenset(("convert", "cvt"))
_RANGES = frozenset(("-", "–", "to", "and", "or", "by", "x"))
_SHOWN_ARGUMENT: Mapping[str, int] = {"lang": 2, "nowrap": 1, "nobr": 1, "transliteration": 2, "transl": 2}

_SWITCHES = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r" ?[(\[][\s,;:–-]*[)\]]")
_OPENED_EMPTY = re.compile(r"\((?:\s*[,;:])+\s*")
_SPACE_IN_LINE = re.compile(r"[^\S\n]+")
_LINE_END = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n(?:[*#:;]*\n)+")


def plain(wikitext: str, hidden: frozenset[str] = frozenset(), *, name: str = "") -> str:
    """The running text, headings and lists of an article, without tables, references, pictures and templates.

    As WikiExtractor, whose output DPR's passages are made of, except that lists stay. Templates would have to be
    run by MediaWiki; of a few that stand within sentences, such as units, the arguments that matter are kept.

    Args:
        hidden: names of namespaces, in lower case, links into which show no text: files, categories.
        name: of the article, for the error.
    Raises: UnreadableError if the parser gives up.
    """
    import mwparserfromhell
    from mwparserfromhell.parser import ParserError

    try:
        code = mwparserfromhell.parse(wikitext, skip_style_tags=False)
    except ParserError as error:
        raise UnreadableError(f"the wikitext of {name!r} cannot be parsed ({error}); remove the page") from error
    text = _SWITCHES.sub("", _Shown(hidden).of(code))
    text = _EMPTY_BRACKETS.sub("", text)
    text = _OPENED_EMPTY.sub("(", text)
    text = _LINE_END.sub("\n", _SPACE_IN_LINE.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


class _Shown:
    """What of a node is shown. The parser nests no deeper than 40 levels, so that recursion is bounded."""

    def __init__(self, hidden: frozenset[str]) -> None:
        from mwparserfromhell import nodes

        self._hidden = hidden
        self._by_kind: dict[type, Callable[[Any], str]] = {
            nodes.Text: lambda node: node.value,
            nodes.Wikilink: self._link,
            nodes.ExternalLink: self._external_link,
            nodes.Tag: self._tag,
            nodes.Heading: lambda node: f"\n{self.of(node.title).strip()}\n",
            nodes.HTMLEntity: lambda node: unescape(str(node)),
            nodes.Template: self._template,
        }

    def of(self, code: Wikicode | None) -> str:
        """The text of some code; comments, and arguments of a template's own page, have none."""
        if code is None:
            return ""
        return "".join(self._by_kind[type(node)](node) for node in code.nodes if type(node) in self._by_kind)

    def _link(self, node: Any) -> str:
        target = str(node.title).strip()
        namespace, colon, _ = target.partition(":")
        if colon and namespace.strip().lower() in self._hidden:
            return ""
        return self.of(node.text) if node.text is not None else target.removeprefix(":")

    def _external_link(self, node: Any) -> str:
        if node.title is not None:
            return self.of(node.title)
        return "" if node.brackets else str(node.url)

    def _tag(self, node: Any) -> str:
        tag = str(node.tag).strip().lower()
        if tag in _NO_TEXT:
            return ""
        text = self.of(node.contents) if node.contents is not None else ""
        if tag in _BREAKS:
            return f"\n{text}\n" if text else "\n"
        return text

    def _template(self, node: Any) -> str:
        template = str(node.name).strip().lower()
        if template in _UNITS:
            return self._measure(node)
        shown = _SHOWN_ARGUMENT.get(template)
        return self._argument(node, shown) if shown is not None else ""

    def _measure(self, node: Any) -> str:
        """{{convert|5|to|6|km}}: 5 to 6 km."""
        num_shown = 4 if self._argument(node, 2) in _RANGES else 2
        return " ".join(filter(None, (self._argument(node, i) for i in range(1, num_shown + 1))))

    def _argument(self, node: Any, i: int) -> str:
        return self.of(node.get(i).value).strip() if node.has(i) else ""
