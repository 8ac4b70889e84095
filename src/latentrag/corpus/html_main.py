"""Which blocks of a page are its main text.

Prose, that is long blocks with few links, shows where the main text is. Where in doubt, the text stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice, takewhile

from latentrag.corpus.html_blocks import Block, Cut, Element
from latentrag.corpus.html_kinds import Kind

_MAX_SHARE: Mapping[Kind, float] = {"perhaps": 0.1, "around": 0.5, "comments": 0.9, "hidden": 0.5}
"""An element with more of the page's prose is not left out, whatever it seems to be."""
_MIN_MARKED_SHARE = 0.5
"""If <main> and <article> have less of the page's prose, they are not where its text is."""
_MIN_BODY_SHARE = 0.7
"""The body of the text is the innermost element with so much of the prose, paragraphs and lists aside."""
_MAX_LINKS_BESIDE = 0.1
"""What stands beside the body belongs to it if it has prose or a heading, and at most so much of it in links."""

_Share = Callable[[Element], float]


def main_text(page: Cut) -> list[Block]:
    """The blocks of the main text, in the page's order."""
    if not page.blocks:
        return []
    out = _left_out(page)
    prose = [0 if i in out else block.prose_chars for i, block in enumerate(page.blocks)]
    share = _shares(prose)
    around = _marked(share, page.elements)
    body = _body(share, around, page.elements)
    shown = [i for i in range(around.first, around.end) if i not in out]
    kept = _with_what_is_beside(shown, body, share, page) if body is not around else shown
    return [page.blocks[i] for i in _without_links(kept, page.blocks) or kept]


def _left_out(page: Cut) -> set[int]:
    """Blocks of menus, banners and the like, and of what is not shown."""
    share = _shares([block.prose_chars for block in page.blocks])
    out: set[int] = set()
    end = 0
    for element in page.elements:
        if element.kind and element.end > end and share(element) <= _MAX_SHARE[element.kind]:
            end = element.end
            out.update(range(element.first, end))
    return out


def _marked(share: _Share, elements: Sequence[Element]) -> Element:
    """What is marked as the main text, else the page. All of it, and all between: a page of several articles is about
    each."""
    marked = [element for element in elements if element.is_main and share(element)]
    if marked:
        around = Element(0, min(e.first for e in marked), max(e.end for e in marked))
        if share(around) >= _MIN_MARKED_SHARE:
            return around
    return elements[0]


def _body(share: _Share, around: Element, elements: Sequence[Element]) -> Element:
    # Elements come in the order of their beginnings: the last that has enough is the innermost.
    least = _MIN_BODY_SHARE * share(around)
    inside = (e for e in reversed(elements) if e.is_place and around.first <= e.first and e.end <= around.end)
    return next((element for element in inside if share(element) >= least > 0), around)


def _with_what_is_beside(shown: list[int], body: Element, share: _Share, page: Cut) -> list[int]:
    """The body's blocks, the title and the lead before it, and the elements beside it that are text as well."""
    blocks, elements = page.blocks, page.elements
    before = [i for i in shown if i < body.first and blocks[i].level]
    start = next((i for i in before if blocks[i].level == 1), before[0] if before else body.first)
    kept = {i for i in shown if body.first <= i < body.end}
    kept |= {i for i in shown if start <= i < body.first and _is_title_or_lead(i, start, blocks)}
    path = {-1}
    ancestor = next(number for number, element in enumerate(elements) if element is body)
    while ancestor >= 0:
        path.add(ancestor)
        ancestor = elements[ancestor].parent
    beside: list[int] = []
    candidates = set(shown)
    for number, element in enumerate(elements):
        if element.parent in path and number not in path:
            inside = [i for i in range(element.first, element.end) if i in candidates]
            chars = sum(blocks[i].num_chars for i in inside)
            links = sum(blocks[i].num_link_chars for i in inside)
            is_text = share(element) > 0 or any(blocks[i].level for i in inside)
            if is_text and links <= _MAX_LINKS_BESIDE * chars:
                beside += inside
    kept |= {i for n, i in enumerate(beside) if i < body.first or _has_text(beside, n, blocks)}
    return sorted(kept)


def _is_title_or_lead(i: int, start: int, blocks: Sequence[Block]) -> bool:
    return i == start or blocks[i].prose_chars > 0 or (blocks[i].level > 0 and not blocks[i].is_links)


def _has_text(beside: list[int], start: int, blocks: Sequence[Block]) -> bool:
    """Whether a block is no heading, or a heading of more than links."""
    if not blocks[beside[start]].level:
        return True
    section = takewhile(lambda i: not blocks[i].level, islice(beside, start + 1, None))
    return any(not blocks[i].is_links for i in section)


def _without_links(kept: list[int], blocks: Sequence[Block]) -> list[int]:
    """Without menus and teasers: blocks of links in a place that holds more of them than of other text."""
    links: Counter[int] = Counter()
    for i in kept:
        links[blocks[i].container] += blocks[i].num_chars if blocks[i].is_links else -blocks[i].num_chars
    return [i for i in kept if blocks[i].level or not blocks[i].is_links or links[blocks[i].container] <= 0]


def _shares(prose_chars: list[int]) -> _Share:
    """How much of the page's prose an element has, 0 to 1; 0 where the page has none."""
    before = [0, *accumulate(prose_chars)]
    return lambda element: (before[element.end] - before[element.first]) / max(1, before[-1])
