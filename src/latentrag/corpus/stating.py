"""What a file states about itself: title (which a program may have made up), date, author, language, section."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import date, datetime
from functools import cache
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING

from latentrag.types import Scalar

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MAX_TITLE_CHARS = 200
"""Of a title, which stands before each passage of its document."""
_MAX_VALUE_CHARS = 200
_MAX_FRONT_CHARS = 1 << 16
_MAX_HEADING_CHARS = 1 << 15
"""How far into a document its first heading is looked for."""

FIELD_KEYS = {
    "date": ("date", "published", "pubdate", "publishdate", "publish_date", "created", "created_at"),
    "author": ("author", "authors", "creator", "byline"),
    "language": ("language", "lang", "locale"),
    "section": ("section", "sections", "chapter"),
}
_MADE_UP = re.compile(
    r"\s*(?:"
    r"microsoft (?:word|powerpoint|excel|publisher|office\b.*?) ?[-–].*"
    r"|(?:untitled|unbenannt(?:es)?|no title|kein titel|ohne titel|sans (?:titre|nom)|sin t[ií]tulo|senza titolo"
    r"|sem t[ií]tulo|без (?:имени|названия)|无标题|無題|제목 ?없음)\W*(?:\w*do[ck]ument\w*|presentation|file|page)?"
    r"|(?:new |neues )?(?:pdf |word |microsoft word )?(?:documento?|dokument|文档|книга|book|mappe|workbook|classeur)"
    r"|(?:powerpoint[- ])?(?:presentation|präsentation|présentation|presentación|презентация(?: powerpoint)?)"
    r"|slide|folie|title|titel|titre|unknown|none|null|\(?anonymous\)?|\(unspecified\)"
    r"|.*\.(?:docx?|dotx?|pptx?|xlsx?|rtf|odt|indd|qxd|qxp|fm|tex|dvi|e?ps|pdf|pmd|p65|cdr|wpd|tmp)"
    r")[\W_]*\d*\W*|[\W_]*",
    re.IGNORECASE,
)
_YAML = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_TOML = re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LINE_OF_YAML = re.compile(r"^(\w+):[ \t]+[\"']?(.*?)[\"']?[ \t]*\r?$", re.MULTILINE)
_FIRST_LEVEL = re.compile(r"^(?: {0,3}#[ \t].*| {0,3}=+[ \t]*)$", re.MULTILINE)
_ANY_LEVEL = re.compile(r"^ {0,3}(?:#|[=-]+[ \t]*$)", re.MULTILINE)
_ANCHOR = re.compile(r"\s*\{#[^}]*\}\s*$")


def title_of(stated: str, heading: str, name: str) -> str:
    """The title that a file states, on one line, unless a program made it up; else its first heading, else its stem."""
    title = " ".join(stated.split())
    return ("" if is_made_up(title) else title) or " ".join(heading.split()) or PurePath(name).stem


def is_made_up(title: str) -> bool:
    """Whether a title is empty, or what programs write in place of one, such as "Microsoft Word - Document1"."""
    return bool(_MADE_UP.fullmatch(title[: 2 * MAX_TITLE_CHARS]))


def bounded(title: str) -> str:
    """A title that leaves room for text beside it: cut at a space, where there is one in the second half."""
    if len(title) <= MAX_TITLE_CHARS:
        return title
    cut = title[: MAX_TITLE_CHARS - 1]
    space = cut.rfind(" ")
    return (cut[:space] if space > MAX_TITLE_CHARS // 2 else cut).rstrip() + "…"


def fields_of(stated: Mapping[str, object]) -> dict[str, Scalar]:
    """Date, author, language and section, under whichever of the usual names they are stated; lists in one line."""
    lower = {key.lower(): value for key, value in stated.items()}
    fields: dict[str, Scalar] = {}
    for name, keys in FIELD_KEYS.items():
        text = next(filter(None, (_line(lower.get(key)) for key in keys)), "")
        if text:
            fields[name] = text
    return fields


def _line(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("name")
    if isinstance(value, list):
        return ", ".join(filter(None, (_line(item) for item in value[:20] if not isinstance(item, list))))
    if isinstance(value, date | datetime):
        return value.isoformat()
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    text = " ".join(str(value).split())[:_MAX_VALUE_CHARS] if is_plain else ""
    return text if text.encode("utf-8", "replace").decode() == text else ""  # no half characters


def front_matter(text: str) -> tuple[Mapping[str, object], int]:
    """What stands before a document in YAML, TOML or JSON, as site generators read it, and where the document begins.

    Lines that are not valid YAML are read as ``name: value``. Without front matter: nothing, and 0.
    """
    head = text[:_MAX_FRONT_CHARS]
    try:
        if head.startswith("{"):
            stated, end = json.JSONDecoder().raw_decode(head)
        elif found := _TOML.match(head):
            stated, end = tomllib.loads(found[1].replace("\r\n", "\n")), found.end()
        elif found := _YAML.match(head):
            stated, end = _yaml(found[1]), found.end()
        else:
            return {}, 0
    except (ValueError, RecursionError):
        return {}, 0
    return (stated, end) if isinstance(stated, dict) else ({}, 0)


def _yaml(text: str) -> object:
    import yaml

    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506  strings, lists and mappings only
    except yaml.YAMLError:
        return dict(_LINE_OF_YAML.findall(text))


def markdown_heading(text: str) -> str:
    """The first heading of the first level, else of any level, as it is shown; empty if there is none."""
    text = text[:_MAX_HEADING_CHARS]
    of_level: dict[str, str] = {}
    if not _ANY_LEVEL.search(text):
        return ""
    # Mostly the first line that looks like a heading is one, and what follows it need not be parsed.
    likely = _FIRST_LEVEL.search(text)
    for end in [likely.end(), len(text)] if likely else [len(text)]:
        of_level = {}
        tokens = _parser("inline").parse(text[:end])
        for opened, content in pairwise(tokens):
            if opened.type == "heading_open" and not opened.level and (title := _shown(content.content)):
                of_level.setdefault(opened.tag, title)
        if "h1" in of_level:
            return of_level["h1"]
    return next(iter(of_level.values()), "")


def _shown(markdown: str) -> str:
    (line,) = _parser().parseInline(_ANCHOR.sub("", markdown))
    shown = (token for token in line.children or () if token.type != "html_inline")
    # Of a picture the content is its description.
    texts = (" " if token.type.endswith("break") else token.content for token in shown)
    return " ".join("".join(texts).split())


@cache
def _parser(*without: str) -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").disable(without)
