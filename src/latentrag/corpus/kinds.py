"""Which formats there are, and which of them a file has: by its name alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

from latentrag.corpus.docx import docx
from latentrag.corpus.formats import Format, json_lines, markdown, plain_text, tsv
from latentrag.corpus.html import html
from latentrag.corpus.pdf import pdf
from latentrag.corpus.wikipedia import dump, extracted

READABLE = ".txt, .md, .html, .pdf, .docx, .jsonl, .tsv, .xml"
"""For messages."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A format.

    Attributes:
        read: bytes → documents.
        one_document: a file is one document, known by its name alone.
        library: the module it needs, of the extra ``documents``; empty: none.
        packed: read with .gz or .bz2 at the end of its name too.
    """

    read: Format
    one_document: bool = False
    library: str = ""
    packed: bool = False

    @property
    def missing(self) -> str:
        """What to do before files of this kind can be read; empty if nothing is missing. Imports nothing."""
        if not self.library or find_spec(self.library) is not None:
            return ""
        return f"reading it needs {self.library}; run pip install 'latentrag[documents]'"


_HTML = Kind(html, one_document=True, library="selectolax")
_BY_SUFFIX: Mapping[str, Kind] = MappingProxyType(
    {
        ".txt": Kind(plain_text, one_document=True),
        ".md": Kind(markdown, one_document=True),
        ".html": _HTML,
        ".htm": _HTML,
        ".xhtml": _HTML,
        ".pdf": Kind(pdf, one_document=True, library="pypdfium2"),
        ".docx": Kind(docx, one_document=True),
        ".jsonl": Kind(json_lines, packed=True),
        ".tsv": Kind(tsv, packed=True),
        ".xml": Kind(dump, library="mwparserfromhell", packed=True),
    }
)
_EXTRACTED = Kind(extracted, packed=True)
_EXTRACTED_NAME = re.compile(r"wiki_\d{2,}")
# Wikipedia's dumps come in parts too: enwiki-20260101-pages-articles1.xml-p1p41242.bz2
_PART = re.compile(r"(?<=\.xml)-p\d+p\d+$")
_PACKED = (".gz", ".bz2")


def kind_of(name: str) -> Kind | None:
    """The format of a file of this name, if it is one that is read."""
    name = name.lower()
    packed = name.endswith(_PACKED)
    if packed:
        name = name.rpartition(".")[0]
    if _EXTRACTED_NAME.fullmatch(name):
        return _EXTRACTED
    name = _PART.sub("", name)
    found = next((kind for suffix, kind in _BY_SUFFIX.items() if name.endswith(suffix)), None)
    return None if found is None or (packed and not found.packed) else found
