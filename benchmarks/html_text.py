"""What is kept of web pages: our reader of HTML beside well-kept extractors, on pages that others have annotated.

    python -m benchmarks.html_text [--trafilatura FOLDER] [--readability FOLDER] [--documentation FOLDER] [--json FILE]

Nothing is fetched, and no page is part of this repository. The folders are made first:

- trafilatura: a clone of github.com/adbar/trafilatura. Its tests/evaldata.json names, for each of 990 pages, up to six
  pieces of text that belong to the page's main text and up to six that do not. Precision and recall are of all pieces;
  "nothing": pages on which no wanted piece was found.
- readability: a clone of github.com/mozilla/readability. Each of its 130 test pages has the text that Firefox's reader
  view shows. Precision and recall are of words, counted as often as they occur, averaged over the pages.
- documentation: a folder with packages of Debian as subfolders, each unpacked by `dpkg-deb -x PACKAGE_*.deb PACKAGE`
  after `apt-get download PACKAGE` (`PACKAGES` names them). 20 pages of each; "kept": the share of the headings h1 to h6
  in the page's main text that are in the result, averaged over the pages. Where a package has its main text is
  written below, so that no extractor decides it.

Every page belongs to one of two halves, by a hash of its name. Rules and limits were chosen with the first half in
view; the second half was held back and shows what they are worth. A table for each goes to stdout. Peers are
measured if they are installed: pip install trafilatura resiliparse readability-lxml.
"""

import argparse
import hashlib
import io
import json
import re
import statistics
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser

from latentrag.corpus.html import html
from latentrag.corpus.readers import Ledger, UnreadableError

Extract = Callable[[bytes], str]
HALVES = ("chosen on", "held back")
ALL = "all pages"
COUNTS = ("pages", "nothing")
PAGES_OF_A_PACKAGE = 20
MAX_PAGE_BYTES = 1 << 20
PACKAGES = {
    "apache2-doc": ("**/manual/en/**/*.html", "#preamble, #page-content"),
    "cmake-doc": ("**/html/**/*.html", "div.body"),
    "git-doc": ("**/*.html", "#header h1, #content"),
    "libglib2.0-doc": ("**/*.html", "body > div.refentry, body > div.chapter, body > div.refsect1"),
    "nodejs-doc": ("**/*.html", "#apicontent"),
    "postgresql-doc-15": ("**/*.html", "body > div:not(.navheader):not(.navfooter)"),
    "python3.11-doc": ("**/*.html", "div.body"),
    "rust-doc": ("**/html/book/**/*.html", "main"),
    "rust-doc: reference": ("**/html/reference/**/*.html", "main"),
    "rust-doc: std": ("**/html/std/**/*.html", "main"),
}
"""Which pages of a package, and the elements that hold their main text."""


def ours(raw: bytes) -> str:
    with suppress(UnreadableError):
        return "".join(document.text for document in html(io.BytesIO(raw), "page.html", Ledger("page.html")))
    return ""


def trafilatura(*, recall: bool) -> Extract:
    extract = import_module("trafilatura").extract
    # The settings of trafilatura's own evaluation.
    options = {"include_comments": False, "include_tables": True, "include_formatting": False, "favor_recall": recall}
    return lambda raw: extract(raw, **options) or ""


def resiliparse() -> Extract:
    text, parse = import_module("resiliparse.extract.html2text"), import_module("resiliparse.parse.html")
    encoding = import_module("resiliparse.parse.encoding")

    def extract(raw: bytes) -> str:
        tree = parse.HTMLTree.parse(encoding.bytes_to_str(raw, encoding.detect_encoding(raw)))
        return str(text.extract_plain_text(tree, main_content=True))

    return extract


def readability() -> Extract:
    document = import_module("readability").Document
    return lambda raw: _text_of(document(raw).summary())


PEERS: Mapping[str, Callable[[], Extract]] = {
    "trafilatura": lambda: trafilatura(recall=False),
    "trafilatura, recall": lambda: trafilatura(recall=True),
    "resiliparse": resiliparse,
    "readability-lxml": readability,
}


def extractors() -> dict[str, Extract]:
    """Ours, and the peers that are installed."""
    found: dict[str, Extract] = {"ours": ours}
    for name, make in PEERS.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name}: not measured ({error})", file=sys.stderr)
    return found


@dataclass(slots=True)
class Page:
    """One page, what counts on it: `scores(text)` of an extractor's text, to be added up or averaged."""

    name: str
    raw: bytes
    scores: Callable[[str], Mapping[str, float]]

    @property
    def half(self) -> str:
        return HALVES[hashlib.sha256(self.name.encode()).digest()[0] % 2]


def pieces(folder: Path) -> Iterator[Page]:
    """The pages of trafilatura's evaluation."""
    annotated = json.loads((folder / "tests" / "evaldata.json").read_text("utf-8"))
    for item in annotated.values():
        name = item["file"]
        files = [folder / "tests" / within / name for within in ("cache", "eval")]
        raw = next(file for file in files if file.is_file()).read_bytes()
        yield Page(name, raw, partial(_pieces_found, item))


def _pieces_found(item: Mapping[str, list[str]], text: str) -> dict[str, float]:
    text = _spaced(text)
    wanted, unwanted = (sum(_spaced(piece) in text for piece in item[kind]) for kind in ("with", "without"))
    return {"wanted": wanted, "of": len(item["with"]), "unwanted": unwanted, "nothing": not wanted}


def words(folder: Path) -> Iterator[Page]:
    """The pages of readability's evaluation."""
    for case in sorted((folder / "test" / "test-pages").iterdir()):
        expected = Counter(_words(_text_of((case / "expected.html").read_text("utf-8"))))
        if expected:
            raw = (case / "source.html").read_bytes()
            yield Page(case.name, raw, partial(_words_found, expected))


def _words_found(expected: Counter[str], text: str) -> dict[str, float]:
    found = Counter(_words(text))
    common = (found & expected).total()
    recall = common / expected.total()
    return {"precision": common / max(1, found.total()), "recall": recall, "nothing": not common}


def headings(folder: Path) -> Iterator[Page]:
    """Pages of documentation that have at least two headings."""
    for package, (pattern, main) in PACKAGES.items():
        within = folder / package.partition(":")[0]
        files = sorted(within.glob(pattern), key=lambda file: hashlib.sha256(file.name.encode()).digest())
        if not files:
            raise SystemExit(f"error: no page of {package} in {within}; apt-get download {within.name}, dpkg-deb -x")
        pages = (_documentation(file, f"{package}/{file.name}", main) for file in files if _can_be_measured(file))
        for page, _ in zip(filter(None, pages), range(PAGES_OF_A_PACKAGE), strict=False):
            yield page


def _can_be_measured(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and file.stat().st_size <= MAX_PAGE_BYTES


def _documentation(file: Path, name: str, main: str) -> Page | None:
    raw = file.read_bytes()
    selectors = ", ".join(f"{part} {tag}" for part in main.split(", ") for tag in ("h1", "h2", "h3", "h4", "h5", "h6"))
    # A sign that links to the heading itself is no part of it.
    found = {node.mem_id: node for node in LexborHTMLParser(raw).css(selectors.replace("h1 h1", "h1"))}
    texts = [text for text in (_plain(node.text()) for node in found.values()) if text]
    if len(texts) < 2:
        return None
    return Page(name, raw, partial(_headings_found, texts))


def _headings_found(texts: list[str], text: str) -> dict[str, float]:
    text = _plain(text)
    kept = sum(heading in text for heading in texts)
    return {"kept": kept / len(texts), "nothing": not kept}


def _plain(text: str) -> str:
    """Letters and digits alone: signs that link to a heading, and what joins its parts, are not counted."""
    return "".join(re.findall(r"[^\W_]+", text))


def _spaced(text: str) -> str:
    """In one normal form, without soft hyphens, with one kind of space."""
    return " ".join(unicodedata.normalize("NFC", text.replace("\xad", "")).split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _text_of(page: str) -> str:
    return LexborHTMLParser(page).text(separator=" ")


@dataclass(slots=True)
class Sums:
    """What an extractor scored on some pages."""

    scores: list[Mapping[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, seconds: float, scores: Mapping[str, float]) -> None:
        self.seconds += seconds
        self.scores.append(scores)

    def row(self) -> dict[str, float]:
        count = len(self.scores)
        total = {key: sum(score[key] for score in self.scores) for key in self.scores[0]}
        row = {key: statistics.fmean(score[key] for score in self.scores) for key in total}
        if "wanted" in total:
            found = max(1, total["wanted"] + total["unwanted"])
            row = {"precision": total["wanted"] / found, "recall": total["wanted"] / total["of"]}
        return {"pages": count, **row, "nothing": total["nothing"], "ms a page": 1000 * self.seconds / count}


def measure(pages: Iterator[Page], extractors: Mapping[str, Extract]) -> dict[str, dict[str, dict[str, float]]]:
    """By half, by extractor: its row."""
    sums = {half: {name: Sums() for name in extractors} for half in (*HALVES, ALL)}
    for number, page in enumerate(pages, start=1):
        if number % 100 == 0:
            print(f"{number} pages", file=sys.stderr)
        for name, extract in extractors.items():
            started = time.process_time()
            try:
                text = extract(page.raw)
            except Exception as error:  # noqa: BLE001  a peer that fails on a page has found nothing there
                print(f"{name}: {page.name}: {type(error).__name__}: {error}", file=sys.stderr)
                text = ""
            seconds, scores = time.process_time() - started, page.scores(text)
            for half in (page.half, ALL):
                sums[half][name].add(seconds, scores)
    return {half: {name: found.row() for name, found in by_name.items()} for half, by_name in sums.items()}


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    columns = list(next(iter(rows.values())))
    yield f"\n{title}\n\n| | " + " | ".join(columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for name, row in rows.items():
        cells = (f"{value:.0f}" if column in COUNTS else f"{value:.3f}" for column, value in row.items())
        yield f"| {name} | " + " | ".join(cells) + " |"


SETS = {"trafilatura": pieces, "readability": words, "documentation": headings}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER")
    parser.add_argument("--only", action="append", help="measure this extractor alone; can be repeated")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chosen = {name: extract for name, extract in extractors().items() if not given.only or name in given.only}
    content = {}
    for name, pages in SETS.items():
        folder = getattr(given, name)
        if folder is not None:
            content[name] = measure(pages(folder), chosen)
            for half, rows in content[name].items():
                print("\n".join(table(f"{name}, {half}", rows)), flush=True)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
