"""The text of Word documents: ZIP archives of XML, read with the standard library."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from latentrag.corpus.docx_lists import Lists, Styles
from latentrag.corpus.docx_math import formula
from latentrag.corpus.notation import NO_CHARACTER, fraction, numbered, raised, symbol
from latentrag.corpus.ooxml import element, events, opened, properties, target
from latentrag.corpus.readers import Ledger, Reader
from latentrag.corpus.stating import fields_of, title_of
from latentrag.corpus.text import XmlEvent
from latentrag.types import Document

# Deleted and moved text, and the older form of a text box that is there in a newer form too.
_NOT_SHOWN = frozenset(("del", "moveFrom", "Fallback"))
_NOTES = {"footnoteReference": "footnote", "endnoteReference": "endnote"}
_APART = ("txbxContent", "footnote", "endnote")
_NO_NOTES = ("separator", "continuationSeparator", "continuationNotice")
_AROUND = re.compile(r"word/(header|footer)\d*\.xml")
_COMMENTS = re.compile(r"word/comments\w*\.xml")
_CHARACTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_SYMBOL_FONTS = re.compile("[\uf020-\uf0ff]")
_COUNTER = re.compile(r"\s*SEQ\s+(\S+)")
_FRACTION = re.compile(r"\\f\s*\(([^,;()]+)[,;]([^,;()]+)\)")


def docx(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: headers, body, footers, each of them once; a line for each paragraph and each row of a table.

    Notes follow the paragraph that refers to them, text boxes the one they are anchored in. Numbers of lists and of
    captions are counted as Word does. Deleted text and comments are left out. Title: the one in the file's properties,
    unless a program made it up, else the first heading, else the file's stem. Author, date and language are fields.
    """
    with opened(file, "docx", "the older .doc; save it as .docx without a password") as archive:
        stated = properties(archive)
        styles = Styles.read(archive)
        words = _Words(ledger, Lists.read(archive, styles), styles)
        for kind in ("footnotes", "endnotes"):
            if f"word/{kind}.xml" in archive.namelist():
                words.add(events(archive, f"word/{kind}.xml"))
        body = words.text(events(archive, target(archive, "officeDocument") or "word/document.xml"))
        around: dict[str, list[str]] = {"header": [], "footer": []}
        for part in sorted(archive.namelist()):
            if place := _AROUND.fullmatch(part):
                text = words.text(events(archive, part)).strip()
                if text and text not in around[place[1]]:
                    around[place[1]].append(text)
            elif _COMMENTS.fullmatch(part):
                num_comments = sum(event.kind == "start" and event.tag == "comment" for event in events(archive, part))
                ledger.leave_out("comment", num_comments)
    text = "\n".join((*around["header"], body, *around["footer"]))
    title = title_of(stated.get("title", ""), words.heading, name)
    yield Document(id=name, text=text, title=title, source=ledger.file, fields=fields_of(stated))


DOCX = Reader(
    docx,
    suffixes=(".docx",),
    mime_types=("application/vnd.openxmlformats-officedocument.wordprocessingml.document",),
    one_document=True,
)


@dataclass(slots=True)
class _Field:
    """A field of Word: what it is to show, and how much text there was when its result began."""

    instruction: str = ""
    num_pieces: int = 0


@dataclass(slots=True)
class _Words:
    """The text of the parts of one document."""

    ledger: Ledger
    lists: Lists
    styles: Styles
    heading: str = ""
    notes: dict[tuple[str, str], str] = field(default_factory=dict)
    _numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    _counters: Counter[str] = field(default_factory=Counter)
    # Text boxes and notes are parts of a text with a text of their own.
    _texts: list[list[str]] = field(default_factory=lambda: [[]])
    _behind: list[str] = field(default_factory=list)
    _raised: list[str] = field(default_factory=list)
    _fields: list[_Field] = field(default_factory=list)
    _hidden: int = 0
    _tables: int = 0
    _style: str = ""
    _level: str = ""
    _list: str = ""
    _font: str = ""
    _is_raised: bool = False
    _note: str = ""
    _around: list[tuple[str, int]] = field(default_factory=list)
    _start: int = 0

    def text(self, told: Iterator[XmlEvent]) -> str:
        self.add(told)
        self._flush()
        text = "".join(self._texts[-1]).strip("\n")
        self._texts = [[]]
        return text

    def add(self, told: Iterator[XmlEvent]) -> None:
        for event in told:
            if event.kind == "start" and event.tag == "oMath":
                self._put(self._apart(formula(element("oMath", told))))
            elif event.kind == "start":
                self._begin(event)
            elif event.kind == "text":
                self._read(event)
            else:
                self._end(event.tag)

    def _begin(self, event: XmlEvent) -> None:
        tag, value = event.tag, event.attributes.get("val", "")
        if tag in _NOT_SHOWN:
            self._hidden += 1
            self.ledger.leave_out(f"element that is not shown: {tag}")
        elif event.parent in ("pPr", "numPr", "rPr"):
            self._property(event.parent, tag, value, event)
        elif tag == "p":
            self._style = self._level = self._list = ""
            self._start = len(self._texts[-1])
        elif tag == "r":
            self._is_raised, self._font = False, ""
        elif tag == "tbl":
            self._tables += 1
        elif tag in _APART:
            self._flush_raised()
            self._texts.append([])
            self._around.append((self._style, self._start))
            self._note = event.attributes.get("id", "")
            if event.attributes.get("type") in _NO_NOTES:
                self._note = ""
        elif tag == "fldSimple":
            self._fields.append(_Field(event.attributes.get("instr", ""), len(self._texts[-1])))
        elif event.parent == "r" and not self._hidden:  # a tab outside of a run is a tab stop
            self._in_run(tag, event)

    def _property(self, parent: str, tag: str, value: str, event: XmlEvent) -> None:
        if parent == "numPr":
            self._level = value if tag == "ilvl" else self._level
            self._list = value if tag == "numId" else self._list
        elif tag == "pStyle":
            self._style = value
        elif tag == "vertAlign" and parent == "rPr":
            self._is_raised = value == "superscript"
        elif tag == "rFonts":
            self._font = event.attributes.get("ascii") or event.attributes.get("hAnsi") or ""

    def _in_run(self, tag: str, event: XmlEvent) -> None:
        if tag == "sym":
            code = int(event.attributes.get("char") or "0", 16) & 0xFF
            self._put(self._symbol(event.attributes.get("font", ""), code))
        elif tag in _NOTES:
            self._refer(_NOTES[tag], event.attributes.get("id", ""))
        elif tag == "fldChar":
            match event.attributes.get("fldCharType"):
                case "begin":
                    self._fields.append(_Field(num_pieces=len(self._texts[-1])))
                case "end":
                    self._end_field()
        elif tag in _CHARACTERS:
            self._put(_CHARACTERS[tag])

    def _read(self, event: XmlEvent) -> None:
        if event.tag == "instrText" and self._fields:
            self._fields[-1].instruction += event.text
        elif event.tag == "t" and not self._hidden:
            text = _SYMBOL_FONTS.sub(lambda found: self._symbol(self._font, ord(found[0]) & 0xFF), event.text)
            if self._is_raised:
                self._raised.append(text)
            else:
                self._put(text)

    def _end(self, tag: str) -> None:
        """Ends a paragraph, a cell or a row of a table, or something in a text of its own."""
        pieces = self._texts[-1]
        if tag in _NOT_SHOWN:
            self._hidden -= 1
        elif tag == "pPr":
            self._put(self.lists.label(self._list, self._level, self._style))
        elif tag == "fldSimple":
            self._end_field()
        elif tag in ("p", "tr"):
            self._flush_raised()
            if tag == "p":
                self._end_paragraph()
            pieces.append("\n")
        elif tag == "tc" and pieces[-1:] == ["\n"]:
            pieces[-1] = "\t"
        elif tag == "tbl":
            self._tables -= 1
        elif tag in _APART:
            self._end_apart(tag)
        if tag in ("p", "tbl") and not self._tables and len(self._texts) == 1:
            self._flush()

    def _end_apart(self, tag: str) -> None:
        self._flush_raised()
        text = "".join(self._texts.pop()).strip()
        self._style, self._start = self._around.pop()
        if tag == "txbxContent":
            self._behind.append(text)
        elif self._note:
            self.notes[tag, self._note] = text

    def _end_paragraph(self) -> None:
        if not self.heading and self.styles.is_heading(self._style):
            self.heading = "".join(self._texts[-1][self._start :])

    def _put(self, text: str) -> None:
        if text and not self._hidden:
            self._flush_raised()
            self._texts[-1].append(text)

    def _flush_raised(self) -> None:
        if self._raised:
            text, self._raised = "".join(self._raised), []
            self._texts[-1].append(raised(text))

    def _flush(self) -> None:
        """What belongs behind the paragraph that has ended."""
        self._flush_raised()
        for text in filter(None, self._behind):
            self._texts[-1].append(f"{text}\n")
        self._behind.clear()

    def _refer(self, kind: str, key: str) -> None:
        note = self.notes.get((kind, key))
        if note:
            number = self._numbers.setdefault((kind, key), 1 + sum(other == kind for other, _ in self._numbers))
            mark = f"[{number}]" if kind == "footnote" else f"[{numbered(number, 'lowerRoman')}]"
            self._put(mark)
            self._behind.append(f"{mark} {note}")

    def _end_field(self) -> None:
        """A field whose result was never computed: a caption's number, a fraction."""
        if not self._fields:
            return
        ended = self._fields.pop()
        has_result = len(self._texts[-1]) > ended.num_pieces or bool(self._raised)
        if counter := _COUNTER.match(ended.instruction):
            self._counters[counter[1]] += 1
            if not has_result:
                self._put(str(self._counters[counter[1]]))
        elif not has_result and (found := _FRACTION.search(ended.instruction)):
            self._put(self._apart(fraction(found[1], found[2])))

    def _apart(self, text: str) -> str:
        """What begins with a digit must not grow onto another: 3 1/2 is not 31/2."""
        before = "".join(self._texts[-1][-1:])
        return f" {text}" if before[-1:].isdigit() and text[:1].isdigit() else text

    def _symbol(self, font: str, code: int) -> str:
        character = symbol(font, code)
        self.ledger.leave_out(f"symbol of the font {font}", character == NO_CHARACTER)
        return character
