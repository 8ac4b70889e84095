"""What an element of a web page seems to be, by its tag, role, names and state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

Kind = Literal["", "perhaps", "around", "comments", "hidden"]
"""Nothing known; perhaps around the main text, by its name; around it; what readers wrote; not shown."""
_NAMED: tuple[Kind, ...] = ("", "perhaps", "around", "comments")

BLOCKS = frozenset(
    "address article aside blockquote body br button caption center dd details dialog dir div dl dt fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav noscript ol p pre "
    "search section summary table tbody td tfoot th thead tr ul".split()
)
"""Tags that part the text before from the text behind."""
LEVELS = {f"h{level}": level for level in range(1, 7)}
_HEADINGS = ", ".join(LEVELS)
_AROUND = frozenset("dialog menu nav noscript search".split())
_AROUND_ROLES = frozenset("contentinfo dialog menu navigation search".split())

# Words of classes and ids.
_AROUND_NAMES = frozenset(
    "advert advertisement advertising aside authorbox breadcrumb breadcrumbs consent cookie cookies footer masthead "
    "modal navbar navigation newsletter outbrain popup promo promos promotion recommended related relatedposts share "
    "shariff sharing sidebar signup sociable social sponsored subscribe subscription taboola teilen".split()
)
_AROUND_PHRASES = re.compile(
    r"about-?author|author-?(?:bio|box|desc|info|profile)|hidden-?print|hide-?print|most-?(?:popular|read|viewed)|"
    r"next-?read|no-?print|pop-?up|print-?hid|print-?none|read-?next"
)
_COMMENTS_NAMES = frozenset("comment commentlist comments disqus kommentare respond".split())
_PERHAPS_NAMES = frozenset(
    "ad ads author authors autor autoren banner bio byline copyright credit credits cta likes menu nav pager "
    "pagination postmetadata promoted rating recommendation recommendations taglist tags teaser teasers textwidget "
    "toolbar widgets".split()
)
_PERHAPS_PHRASES = re.compile(
    r"(?:article|entry|news|post|story)-?(?:date|info|meta)|meta-?(?:data|info)|publish(?:ed)?-?date"
)
_ALL_NAMES = _AROUND_NAMES | _COMMENTS_NAMES | _PERHAPS_NAMES
_NEGATING = frozenset("has have hidden hide is no not with without".split())
_UNFOLDING = frozenset(
    "accordion answer collapse collapsed collapsible details expand expandable faq panel tab tabpanel tabs "
    "toggle".split()
)
_NOTES = frozenset(
    "admonition attention callout caution danger endnote endnotes example footnote footnotes hint important info note "
    "notes tip warning".split()
)
_SCREEN_READERS = frozenset("screen-reader-text sr-only visually-hidden visuallyhidden".split())
_NOT_SHOWN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_MAX_LINKS_OF_A_NOTE = 1 / 3
_MIN_LABEL_BYTES = 24
"""A button with so much text is more than a control: a question that unfolds its answer."""


def num_chars(text: str) -> int:
    """Characters without spaces."""
    return sum(map(len, text.split()))


def kind_of(node: LexborNode, inside: Mapping[str, int], *, in_main: bool, in_heading: bool) -> Kind:
    """What an element seems to be.

    Args:
        inside: how many elements of each tag are open around it.
        in_main: one of them is marked as the main text.
        in_heading: one of them is a heading.
    """
    tag, attributes = node.tag or "", node.attributes
    role = attributes.get("role") or ""
    if attributes and tag != "body" and _is_hidden(node, attributes, role):
        return "hidden"
    if tag in ("article", "body", "main") or role == "main":
        return ""
    is_beside = tag in ("aside", "footer") or role == "complementary"
    is_head = (tag == "header" or role == "banner") and not in_main
    if tag in _AROUND or role in _AROUND_ROLES or is_beside or is_head:
        is_text = (is_beside and _is_note(node, tag, inside, in_main=in_main)) or (is_head and _has_title(node))
        return "" if is_text else "around"
    if in_heading or tag in LEVELS or not (attributes or tag == "button") or not (tag in BLOCKS or "-" in tag):
        return ""
    if tag == "button":
        return "" if inside.get("dt") or inside.get("summary") or _is_label(node) else "around"
    return _NAMED[_by_name(node, tag)]


def _has_title(head: LexborNode) -> bool:
    """Whether it holds the page's heading; a site's name is mostly a link."""
    title = head.css_first("h1")
    return title is not None and title.css_first("a") is None


@lru_cache(4096)
def _words(name: str) -> tuple[str, ...]:
    # What follows -- is a state or a variant (BEM).
    return tuple(word.lower() for word in _WORD.findall(name.partition("--")[0]))


def _classes(node: LexborNode) -> list[str]:
    return (node.attributes.get("class") or "").split()


def _all_words(node: LexborNode) -> set[str]:
    return set(_words(node.attributes.get("id") or "")).union(*map(_words, _classes(node)))


def _by_name(node: LexborNode, tag: str) -> int:
    """Which of ``_NAMED`` the names of an element stand for."""
    identifier = node.attributes.get("id") or ""
    named = max(map(_meaning, _classes(node)), default=0)
    if not _names_its_heading(node, tag, identifier):
        named = max(named, _meaning(identifier))
    return 0 if named == 1 and not _may_be_around(node, tag) else named


@lru_cache(4096)
def _meaning(name: str) -> int:
    """Which of ``_NAMED`` a name stands for."""
    words = _words(name)
    phrase = "-".join(words)
    if _AROUND_PHRASES.search(phrase):
        return 2
    if not _NEGATING.isdisjoint(words) or words[:1] in (("category",), ("tag",)):  # of a post, in WordPress
        return 0
    meanings = ((3, _COMMENTS_NAMES), (2, _AROUND_NAMES), (1, _PERHAPS_NAMES))
    by_word = (meaning for meaning, known in meanings if not known.isdisjoint(words))
    return next(by_word, int(_PERHAPS_PHRASES.search(phrase) is not None))


def _names_its_heading(node: LexborNode, tag: str, identifier: str) -> bool:
    """Whether a section's id is made of its heading, as generators of documentation do."""
    if tag != "section" and "section" not in _classes(node):
        return False
    heading = node.css_first(_HEADINGS)
    words = re.findall(r"[a-z]+|\d+", (heading.text() or "").lower()) if heading is not None else []
    # "3 comments" is no heading of an author's.
    return bool(words) and not words[0].isdigit() and {*_words(identifier)} & _ALL_NAMES <= {*words}


def _may_be_around(node: LexborNode, tag: str) -> bool:
    """Whether a name that is no more than a hint counts: not of what is a paragraph, holds the title, or is a lead,
    which is named as teasers are and has no link."""
    if tag == "p" or node.css_first("h1") is not None:
        return False
    return "teaser" not in _all_words(node) or node.css_first("a") is not None


def _is_note(node: LexborNode, tag: str, inside: Mapping[str, int], *, in_main: bool) -> bool:
    """Whether what stands beside a text is the author's: a warning, footnotes, the source of a quotation."""
    named = max(map(_meaning, _classes(node)), default=0)
    if inside.get("blockquote") or (named < 2 and not _NOTES.isdisjoint(_all_words(node))):
        return True
    if tag == "footer" or not in_main or named:
        return False
    links = sum(num_chars(link.text() or "") for link in node.css("a"))
    return links <= _MAX_LINKS_OF_A_NOTE * num_chars(node.text() or "")


def _is_label(button: LexborNode) -> bool:
    return len(" ".join((button.text() or "").split()).encode("utf-8", "replace")) >= _MIN_LABEL_BYTES


def _is_hidden(node: LexborNode, attributes: Mapping[str, str | None], role: str) -> bool:
    """Whether it is not shown, and is neither a tab that is not in front nor an answer that is folded away, nor a
    formula beside its picture, nor a caption, which programs hide from screen readers if it repeats what they say."""
    is_hidden = (
        (attributes.get("aria-hidden") == "true" and node.tag != "figcaption")
        or attributes.get("hidden", "until-found") != "until-found"
        or ("style" in attributes and bool(_NOT_SHOWN.search(attributes["style"] or "")))
        or ("class" in attributes and not _SCREEN_READERS.isdisjoint(_classes(node)))
    )
    is_shown_later = role == "tabpanel" or (is_hidden and not _UNFOLDING.isdisjoint(_all_words(node)))
    return is_hidden and not is_shown_later and node.css_first("math") is None
