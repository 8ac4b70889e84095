"""The characters of a page of PDF → lines in reading order: powers, columns, rows of tables, running heads.

The order in which a file draws its text is mostly that in which it is read, so it is kept, but where it is drawn row by
row across columns, or a table is drawn column by column.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, takewhile
from statistics import median

from latentrag.corpus.notation import raised

_MIN_GAP = 1.5
"""Between two pieces of a row; as all lengths below in font sizes. Words of a line stand closer, also if justified."""
_MIN_SPACE = 0.17
_MIN_GUTTER = 0.8
_SAME_ROW = 0.35
_MAX_ROW_GAP = 3.0
_MAX_RAISED_SIZE = 0.85
_MAX_RAISE = 0.8
_MIN_RAISE = 0.15
_MIN_PROSE_ROWS = 3
_MIN_PROSE_WORDS = 2.5
_MAX_PROSE_COLUMNS = 3
_MIN_CONTINUED = 0.4
_MAX_TABLE_WORDS = 3
_MIN_HEAD_PAGES = 3
_HEAD_ROWS = 3
"""At the top and at the bottom of a page, how many rows may be running heads or feet."""
_SAME_HEIGHT = 3.0
"""Points."""
_MIN_HEADING = 1.15
_MAX_HEADING_LINES = 3
_DIGITS = re.compile(r"\d+")


@dataclass(slots=True)
class Character:
    """``y``: of the baseline; all lengths in points. ``text`` is empty for a line break that the library found,
    ``size`` 0 for a space that it did."""

    text: str
    left: float
    right: float
    y: float
    size: float


@dataclass(slots=True)
class Line:
    """A line of text or a row of a table; before that, a piece of one."""

    text: str
    left: float
    right: float
    y: float
    size: float


def lines_of(characters: Iterable[Character]) -> list[Line]:
    """The lines of a page in reading order."""
    pieces = [piece for piece in _pieces(characters) if piece.text.strip()]
    place_of = {id(piece): i for i, piece in enumerate(pieces)}
    replaced: dict[int, list[Line]] = {}
    for rows in _blocks(pieces):
        made = _read_block(rows, place_of)
        if made:
            places = sorted(place_of[id(piece)] for row in rows for piece in row)
            replaced.update({place: [] for place in places})
            replaced[places[0]] = made
    lines: list[Line] = []
    for place, piece in enumerate(pieces):
        if place in replaced:
            lines += replaced[place]
        elif lines and place - 1 not in replaced and _same_row(lines[-1], piece) and piece.left >= lines[-1].right:
            lines[-1] = _joined([lines[-1], piece], " ")
        else:
            lines.append(piece)
    return lines


def _pieces(characters: Iterable[Character]) -> Iterator[Line]:
    """Runs of characters on one baseline without wide gaps, in the order in which they are drawn."""
    run: list[Character] = []
    base: Character | None = None
    last: Character | None = None
    is_broken = False
    for character in characters:
        if not character.text.strip():
            is_broken = is_broken or not character.text
            run += [character] if run and character.text else []
            continue
        if base is None or last is None or not _continues(base, last, character, is_broken=is_broken):
            yield from _piece(run)
            run, base = [], character
        else:
            # Before and after small characters the library finds spaces and line breaks that are none.
            is_small = min(character.size, last.size) <= _MAX_RAISED_SIZE * base.size
            is_close = is_small and character.left - last.right < _MIN_SPACE * base.size
            if is_close and not run[-1].size:
                run.pop()
            elif is_broken and not is_close and not run[-1].text.isspace():
                run.append(Character(" ", last.right, last.right, last.y, 0))
            base = character if character.size > base.size else base
        run.append(character)
        last, is_broken = character, False
    yield from _piece(run)


def _continues(base: Character, last: Character, new: Character, *, is_broken: bool) -> bool:
    size = max(base.size, new.size)
    is_beside = abs(new.y - base.y) < _MAX_RAISE * size and -size < new.left - last.right < _MIN_GAP * size
    is_turned = abs(new.left - last.left) < _MIN_SPACE * size and abs(new.y - last.y) < _MIN_GAP * size
    return last.text != "\x02" and (is_beside or (is_turned and not is_broken))


def _piece(run: Sequence[Character]) -> Iterator[Line]:
    letters = [character for character in run if not character.text.isspace()]
    if not letters:
        return
    size = max(character.size for character in letters)
    usual = [character.y for character in letters if character.size > _MAX_RAISED_SIZE * size]
    y = median(usual)
    texts: list[str] = []
    above: list[str] = []
    for character in run:
        is_small = character.size <= _MAX_RAISED_SIZE * size and not character.text.isspace()
        if is_small and character.y - y > _MIN_RAISE * size and texts:
            above.append(character.text)
            continue
        if above:
            texts.append(raised("".join(above)))
            above = []
        texts.append(character.text)
    text = "".join(texts) + raised("".join(above))
    yield Line(text.strip(" "), letters[0].left, max(character.right for character in letters), y, size)


# Columns and tables


def _blocks(pieces: list[Line]) -> Iterator[list[list[Line]]]:
    """Rows that stand below each other and keep at least one gutter free, each with several pieces but for gaps."""
    rows: list[list[Line]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.y):
        if rows and _same_row(rows[-1][0], piece):
            rows[-1].append(piece)
        else:
            rows.append([piece])
    block: list[list[Line]] = []
    for row in [*rows, []]:
        fits = bool(row) and (not block or _is_below(block[-1][0], row[0])) and len(_columns([*block, row])) > 1
        if not fits:
            while block and len(block[-1]) < 2:
                block.pop()
            if len(block) > 1:
                yield block
            block = []
        if row and (len(row) > 1 or block):
            block.append(sorted(row, key=lambda piece: piece.left))


def _same_row(one: Line, other: Line) -> bool:
    return abs(one.y - other.y) < _SAME_ROW * max(one.size, other.size)


def _is_below(above: Line, below: Line) -> bool:
    return above.y - below.y < _MAX_ROW_GAP * max(above.size, below.size)


def _columns(rows: list[list[Line]]) -> list[tuple[float, float]]:
    """What the rows leave free between each other from top to bottom parts them into these columns."""
    columns: list[tuple[float, float]] = []
    size = max(piece.size for row in rows for piece in row)
    for piece in sorted((piece for row in rows for piece in row), key=lambda piece: piece.left):
        if columns and piece.left < columns[-1][1] + _MIN_GUTTER * size:
            columns[-1] = (columns[-1][0], max(columns[-1][1], piece.right))
        else:
            columns.append((piece.left, piece.right))
    return columns


def _read_block(rows: list[list[Line]], place_of: dict[int, int]) -> list[Line]:
    """The lines of a block if they are not those that are drawn: column by column, or a row of a table each."""
    columns = _columns(rows)
    table = [[[piece for piece in row if left <= piece.left <= right] for left, right in columns] for row in rows]
    places = [[place_of[id(piece)] for piece in row] for row in rows]
    is_by_row = all(max(above) < min(below) for above, below in pairwise(places))
    if _is_prose(table):
        if not is_by_row:
            return []
        return [_joined(row[i], " ") for i in range(len(columns)) for row in table if row[i]]
    num_words = [len(piece.text.split()) for row in rows for piece in row]
    is_sure = len(rows) > 2 and sum(num_words) <= _MAX_TABLE_WORDS * len(num_words)
    return [_table_row(row) for row in table] if is_by_row or is_sure else []


def _is_prose(table: list[list[list[Line]]]) -> bool:
    """Whether columns are read from top to bottom: their lines are long and go on in the next one."""
    if len(table) < _MIN_PROSE_ROWS or len(table[0]) > _MAX_PROSE_COLUMNS:
        return False
    for column in zip(*table, strict=True):
        texts = [" ".join(piece.text for piece in cell) for cell in column if cell]
        if sum(len(text.split()) for text in texts) < _MIN_PROSE_WORDS * len(texts):
            return False
        pairs = list(pairwise(texts))
        continued = sum(below[:1].islower() or above.endswith(("-", "\x02")) for above, below in pairs)
        if continued < _MIN_CONTINUED * len(pairs):
            return False
    return True


def _table_row(cells: list[list[Line]]) -> Line:
    """Cells are parted by tabs, empty ones too; a row of a single one is that."""
    filled = [piece for cell in cells for piece in cell]
    row = _joined(filled, " ")
    if sum(map(bool, cells)) > 1:
        row.text = "\t".join(" ".join(piece.text for piece in cell) for cell in cells)
    return row


def _joined(pieces: list[Line], between: str) -> Line:
    text = between.join(piece.text for piece in pieces)
    left, right = min(piece.left for piece in pieces), max(piece.right for piece in pieces)
    return Line(text, left, right, pieces[0].y, max(piece.size for piece in pieces))


# Running heads


def without_running_heads(pages: list[list[Line]]) -> tuple[list[list[Line]], int]:
    """The pages without lines that several have at the same height at their top or bottom, but for a number; and how
    many lines these are. A page that has nothing else keeps them."""
    seen: dict[str, list[tuple[int, Line]]] = defaultdict(list)
    for number, page in enumerate(pages):
        for line in _outermost(page):
            key = _DIGITS.sub("#", " ".join(line.text.split()))
            if len(key) > key.count("#") + 2 or key.strip("-–—.()[] /|") == "#":
                seen[key].append((number, line))
    heads: set[int] = set()
    for found in seen.values():
        for _, line in found:
            at_height = [(number, other) for number, other in found if abs(other.y - line.y) < _SAME_HEIGHT]
            if len({number for number, _ in at_height}) >= _MIN_HEAD_PAGES:
                heads.add(id(line))
    kept = [[line for line in page if id(line) not in heads] or page for page in pages]
    return kept, sum(map(len, pages)) - sum(map(len, kept))


def _outermost(page: list[Line]) -> list[Line]:
    rows = sorted(page, key=lambda line: line.y)
    return rows if len(rows) <= 2 * _HEAD_ROWS else [*rows[:_HEAD_ROWS], *rows[-_HEAD_ROWS:]]


def heading(pages: list[list[Line]]) -> str:
    """The first lines of the first page in its largest size, if that is larger than most of the text; else empty."""
    sizes = Counter[float]()
    for line in chain.from_iterable(pages):
        sizes[line.size] += len(line.text)
    page = pages[0] if pages else []
    largest = max((line.size for line in page if len(line.text) > 1), default=0.0)  # initials are larger
    if not sizes or largest < _MIN_HEADING * sizes.most_common(1)[0][0]:
        return ""
    first = next(i for i, line in enumerate(page) if line.size == largest and len(line.text) > 1)
    lines = takewhile(lambda line: line.size == largest, page[first : first + _MAX_HEADING_LINES])
    return " ".join(line.text.replace("\x02", "-") for line in lines)
