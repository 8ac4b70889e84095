"""The main text of a web page: what its author wrote, without menus, advertising and scripts.

Nothing is run or fetched. html_blocks cuts a page into blocks, html_main chooses those of its main text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

from latentrag.corpus.encodings import decode
from latentrag.corpus.html_blocks import Block, cut
from latentrag.corpus.html_main import main_text
from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.stating import fields_of, is_made_up, title_of
from latentrag.types import Document

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser

_LABEL_BYTES = 4096
_PROLOG = re.compile(rb"\s*<\?xml[^>]{0,200}?\bencoding\s*=\s*[\"']\s*([\w.:-]+)")
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_META = re.compile(rb"<meta\b[^>]*", re.IGNORECASE)
_CONTENT = re.compile(rb"\bcontent\s*=\s*(?:\"[^\"]*\"?|'[^']*'?)", re.IGNORECASE)
_CHARSET = re.compile(rb"\bcharset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_AS_BROWSERS = {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "cp1252", "gbk": "gb18030"}
"""What could be read as ASCII up to the label is not UTF-16."""

_STATED = {
    "date": (
        'meta[property="article:published_time"]',
        'meta[itemprop="datePublished"], time[itemprop="datePublished"]',
        'meta[name="date" i], meta[name^="dc.date" i], meta[name^="dcterms.date" i], meta[name="citation_date"]',
        'meta[name="citation_publication_date"], meta[name="parsely-pub-date"], meta[name="pubdate" i]',
        "article time[pubdate], main time[pubdate]",
    ),
    "author": (
        'meta[name="author" i], meta[name="dc.creator" i], meta[name="citation_author"]',
        'meta[name="parsely-author"], meta[property="article:author"]',
        '[itemprop="author"] [itemprop="name"], [itemprop="author"], [rel="author"]',
    ),
    "section": ('meta[property="article:section"], meta[name="parsely-section"]',),
}
"""Where a page states them, the likeliest place first."""
_STATED_IN_JSON = {"date": "datePublished", "author": "author", "section": "articleSection", "language": "inLanguage"}
_MAX_STATEMENTS = 50
_MIN_TIMES_LONGER = 2
"""If the text that a page states in JSON-LD is so much longer than its main text, scripts show the text."""


def html(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: the page's main text, a line for each block. Title: the page's, unless a program made it up, else
    its first heading, else the file's stem. Fields: date, author, language and section, where the page states them."""
    from selectolax.lexbor import LexborHTMLParser

    page = LexborHTMLParser(_decoded(file.read(), ledger))
    found = cut(page.body)
    main = main_text(found)
    in_page, num_chars = found.num_chars, sum(block.num_chars for block in main)
    statements = list(_statements(page))
    filled_in = cut(LexborHTMLParser(_article_body(statements)).body)
    if filled_in.num_chars > _MIN_TIMES_LONGER * num_chars:
        main, num_chars = filled_in.blocks, 0
    text = _joined(main)
    ledger.leave_out("character in menus, banners, hidden elements and the like", in_page - num_chars)
    ledger.leave_out("character in form fields, pictures and embedded objects", found.num_other_chars)
    if not text:
        raise UnreadableError("no text in the page; if scripts fill it, save it from a browser as it is shown")
    title = title_of(_title(page), _first_heading(main), name)
    yield Document(id=name, text=text, title=title, source=ledger.file, fields=fields_of(_stated(page, statements)))


HTML = Reader(
    html,
    suffixes=(".html", ".htm", ".xhtml"),
    mime_types=("text/html", "application/xhtml+xml"),
    one_document=True,
    library="selectolax webencodings",
)


def _joined(blocks: list[Block]) -> str:
    return "".join(("\t" if block.after_cell else "\n") + block.text for block in blocks)[1:]


def _title(page: LexborHTMLParser) -> str:
    """What the page calls itself, to its readers or else to others; empty if a program made it up."""
    titles = [element.text() or "" for element in page.css("head > title")[:1]]
    titles += [element.attributes.get("content") or "" for element in page.css('meta[property="og:title"]')[:1]]
    return next((title for title in titles if not is_made_up(" ".join(title.split()))), "")


def _first_heading(blocks: list[Block]) -> str:
    """That of the first level, else of any."""
    headings = [block for block in blocks if block.level]
    return next((block.text for block in headings if block.level == 1), headings[0].text if headings else "")


def _stated(page: LexborHTMLParser, statements: list[Mapping[str, object]]) -> Mapping[str, object]:
    """What the page says of itself: in its elements, else in JSON-LD."""
    stated: dict[str, object] = {}
    for statement in statements:
        for field, key in _STATED_IN_JSON.items():
            if statement.get(key):
                stated.setdefault(field, statement[key])
    for field, places in _STATED.items():
        for place in places:
            values = [_value(element.attributes, element.text() or "") for element in page.css(place)[:20]]
            # Some pages name their authors by addresses.
            values = [value for value in dict.fromkeys(values) if value and "://" not in value]
            if values:
                stated[field] = values if field == "author" else values[0]
                break
    if page.root is not None:
        stated["language"] = page.root.attributes.get("lang") or page.root.attributes.get("xml:lang")
    return stated


def _article_body(statements: list[Mapping[str, object]]) -> str:
    """The text of a page whose scripts show it, as it is stated for search engines."""
    bodies = (statement.get("articleBody") for statement in statements)
    return max((body for body in bodies if isinstance(body, str)), key=len, default="")


def _value(attributes: Mapping[str, str | None], text: str) -> str:
    return " ".join((attributes.get("content") or attributes.get("datetime") or text).split())


def _statements(page: LexborHTMLParser) -> Iterator[Mapping[str, object]]:
    """The objects of a page's JSON-LD that have a date or an author; the first may be about the site."""
    for script in page.css('script[type="application/ld+json"]'):
        try:
            content = json.loads(script.text() or "")
        except (ValueError, RecursionError):
            continue
        items = [item for item in (content if isinstance(content, list) else [content]) if isinstance(item, dict)]
        graphs = [item["@graph"] for item in items if isinstance(item.get("@graph"), list)]
        items += [item for graph in graphs for item in graph if isinstance(item, dict)]
        yield from (item for item in items[:_MAX_STATEMENTS] if "datePublished" in item or "author" in item)


def _decoded(raw: bytes, ledger: Ledger) -> str:
    """As browsers do where the page names its encoding; else as text that does not."""
    charset = "" if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) else _charset(raw[:_LABEL_BYTES])
    if not charset:
        return decode(raw, ledger)
    text = raw.decode(charset, "replace").removeprefix("\ufeff")
    ledger.encoding = charset
    ledger.leave_out(f"character that is not {charset}", text.count("\ufffd"))
    return text


def _charset(start: bytes) -> str:
    """The encoding that the page names, by its Python name; empty if it names none that browsers know."""
    from webencodings import lookup

    start = _COMMENT.sub(b"", start)
    labels = [prolog[1]] if (prolog := _PROLOG.match(start)) else []
    for meta in _META.findall(start):
        # The word may stand in a description too.
        named = _CHARSET.search(meta if b"http-equiv" in meta.lower() else _CONTENT.sub(b"", meta))
        labels += [named[1]] if named else []
    encoding = next(filter(None, (lookup(label.decode("ascii")) for label in labels)), None)
    # Browsers show nothing of encodings that are not safe, which have this name in common.
    if encoding is None or encoding.name == "replacement":
        return ""
    return str(_AS_BROWSERS.get(encoding.name, encoding.codec_info.name))
