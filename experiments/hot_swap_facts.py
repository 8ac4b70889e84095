"""Facts of a corpus, and the corpus of another world in which they are otherwise.

A fact is a subject and an entity that the first passage of the subject's article states in one sentence: "Lima is the
capital of Peru". Facts of one kind are exchanged in pairs, so that the other world is as consistent as this one: there
Lima is the capital of Latvia and Riga that of Peru.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from latentrag.types import Passage

MAX_PASSAGES = 8
"""A fact that more passages than this mention is left out: too much else would be changed with it."""

_ENTITY = r"(?P<entity>[A-Z][\w'’.-]*(?: (?:of|the|de|van|von|da|di|and))?(?: [A-Z][\w'’-]*){0,3})"
_CREATOR = r"(?:(?:the )?(?:[A-Z]\w+(?:-[A-Z]\w+)? )?(?:[a-z][\w-]* )+)?"
_ADJECTIVES = """American Argentine Australian Austrian Belgian Brazilian Canadian Chinese Czech Danish Dutch Finnish
French German Greek Hungarian Indian Irish Italian Japanese Mexican Norwegian Polish Portuguese Russian Spanish
Swedish Swiss""".split()
_PERSON = r"(?=.*\b(?:[Hh]e|[Hh]is|[Ss]he|[Hh]er)\b)"
_COUNTRY = re.compile(r"\bis an? (?:[\w-]+,? ){0,4}(?:country|island nation|sovereign state)\b")


@dataclass(frozen=True, slots=True)
class Kind:
    """A relation between a subject and an entity.

    Attributes:
        pattern: of the sentence that states it, in the first passage of the subject's article.
        question: whose answer is the entity.
        entities: what an entity has to be: "country", "title" (of some article), "person" (likewise), or
            "adjective".
        elsewhere: whether passages of other articles state the fact too if they name subject and entity.
    """

    name: str
    pattern: re.Pattern[str]
    question: str
    entities: str
    elsewhere: bool = True


def _work(name: str, nouns: str, verb: str, question: str) -> Kind:
    pattern = rf"^[^.]*?\b(?:is|was) (?:an?|the) [^.]*?\b(?:{nouns})\b(?: [a-z]\w*)*?{verb} by {_CREATOR}{_ENTITY}"
    return Kind(name, re.compile(pattern), question, "person")


KINDS = (
    Kind(
        "capital of a country",
        re.compile(
            rf"^[^.]*?\b(?:is|was) the (?:[a-z]+ )*?capital(?:,? (?:city )?and [a-z- ]+?)? of (?:the )?{_ENTITY}"
        ),
        "What country is {} the capital of?",
        "country",
    ),
    Kind(
        "city in a country",
        re.compile(rf"^[^.]*?\bis (?:a|the) [a-z, -]*?\b(?:city|town) (?:[a-z-]+ )*?in (?:[a-z-]+ )?{_ENTITY}"),
        "In which country is the city of {}?",
        "country",
    ),
    _work(
        "writer",
        "novels?|novella|plays?|tragedy|comedy|poem|book|story|treatise|essay",
        "(?: written)?",
        "Who wrote {}?",
    ),
    _work("director", "film|movie", " directed(?: and [a-z]+)?", "Who directed {}?"),
    _work("composer", "opera|symphony|ballet|concerto|oratorio|suite", "(?: composed)?", "Who composed {}?"),
    _work("painter", "painting|mural|portrait|triptych|fresco", "(?: (?:painted|made|created))?", "Who painted {}?"),
    Kind(
        "nationality",
        re.compile(rf"^{_PERSON}[^.]*? was an? (?:[a-z-]+ )?(?P<entity>{'|'.join(_ADJECTIVES)}) [a-z]"),
        "What nationality was {}?",
        "adjective",
        elsewhere=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Fact:
    """What one passage states, in both worlds.

    Attributes:
        kind: a name in ``KINDS``.
        subject: as the question names it.
        passage: the id of the passage that states it.
        answers: of world A and of world B, each with the shorter forms that count as well.
        changed: the ids of all passages that are otherwise in world B.
    """

    kind: str
    subject: str
    passage: str
    question: str
    answers: tuple[tuple[str, ...], tuple[str, ...]]
    changed: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.subject}"


@dataclass(frozen=True, slots=True)
class _Found:
    """A fact of world A that may be exchanged."""

    kind: Kind
    subject: str
    entity: str
    passage: Passage

    @property
    def names(self) -> tuple[str, ...]:
        """The entity's names: of a person the last one alone too."""
        last = self.entity.rsplit(" ", 1)[-1]
        return (self.entity, last) if self.kind.entities == "person" and last != self.entity else (self.entity,)


def exchanged(passages: Sequence[Passage], *, per_kind: int, seed: int = 0) -> tuple[list[Fact], dict[str, Passage]]:
    """Facts of both worlds, and the passages of world B that differ from those of world A, by id.

    Args:
        passages: of world A.
        per_kind: how many facts of a kind at most; an even number.
    """
    corpus = _Corpus(passages)
    random_order = random.Random(seed)  # noqa: S311
    facts: list[Fact] = []
    of_b: dict[str, Passage] = {}
    for kind in KINDS:
        candidates = list(corpus.facts(kind))
        random_order.shuffle(candidates)
        count = 0
        while candidates and count < per_kind:
            first = candidates.pop()
            for second in candidates:
                changes = _changes(corpus, first, second)
                if changes is not None and changes.keys().isdisjoint(of_b):
                    facts += [_fact(first, second, changes), _fact(second, first, changes)]
                    of_b.update(changes)
                    candidates.remove(second)
                    count += 2
                    break
    return facts, of_b


def states(fact: Fact, passage: Passage, world: int) -> bool:
    """Whether the passage states the fact, in its sentence, as it is in world 0 (A) or 1 (B)."""
    (kind,) = (kind for kind in KINDS if kind.name == fact.kind)
    found = kind.pattern.search(passage.text)
    return found is not None and found["entity"] == fact.answers[world][0]


class _Corpus:
    """Passages by article, and by the words that they name."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self.passages = list(passages)
        self.of_title: dict[str, list[Passage]] = defaultdict(list)
        self._with_word: dict[str, set[int]] = defaultdict(set)
        for number, passage in enumerate(self.passages):
            self.of_title[passage.title].append(passage)
            for word in set(re.findall(r"\w+", passage.text)):
                self._with_word[word].add(number)

    def facts(self, kind: Kind) -> Iterator[_Found]:
        """What the first passages of articles state, in the order of titles."""
        for title in sorted(self.of_title):
            passage = self.of_title[title][0]
            subject = re.sub(r" \([^)]*\)$", "", title)
            match = kind.pattern.search(passage.text)
            if match is None or not self._is(match["entity"], kind.entities):
                continue
            found = _Found(kind, subject, match["entity"], passage)
            if not any(_named(title, name) for name in found.names) and "," not in subject:
                yield found

    def _is(self, entity: str, what: str) -> bool:
        if what == "adjective":
            return True
        if entity not in self.of_title:
            return False
        lead = self.of_title[entity][0].text[:250]
        return what == "person" or _COUNTRY.search(lead) is not None

    def naming(self, *names: str) -> list[Passage]:
        """Passages whose text holds all of these as whole words."""
        sets = [self._with_word[word] for name in names for word in re.findall(r"\w+", name)]
        numbers = sorted(set.intersection(*sets)) if sets else []
        return [z for z in map(self.passages.__getitem__, numbers) if all(_named(z.text, name) for name in names)]


def _changes(corpus: _Corpus, first: _Found, second: _Found) -> dict[str, Passage] | None:
    """The passages that exchanging two facts changes; None if these two cannot be exchanged."""
    if first.entity == second.entity or any(_named(first.entity, name) for name in second.names):
        return None
    changes: dict[str, Passage] = {}
    for one, other in ((first, second), (second, first)):
        stated = _stated_in(corpus, one)
        if len(stated) > MAX_PASSAGES:
            return None
        for passage in stated:
            if passage.id in changes or any(_named(passage.text, name) for name in other.names):
                return None  # it speaks of the other world's entity already
            of_entity = passage.title == one.entity
            new = {one.subject: other.subject} if of_entity else dict(zip(one.names, other.names, strict=False))
            changes[passage.id] = replace(passage, text=substituted(passage.text, new))
    if any(not _restates(found, changes) for found in ((first, second.entity), (second, first.entity))):
        return None
    return changes


def _stated_in(corpus: _Corpus, found: _Found) -> list[Passage]:
    own = [z for z in corpus.of_title[found.passage.title] if any(_named(z.text, name) for name in found.names)]
    if not found.kind.elsewhere:
        return own
    others = {z.id: z for name in found.names for z in corpus.naming(found.subject, name)}
    return list({**{z.id: z for z in own}, **others}.values())


def _restates(found: tuple[_Found, str], changes: Mapping[str, Passage]) -> bool:
    """Whether world B's passage states the fact in the same sentence with the other entity, and no more the old one."""
    fact, entity = found
    text = changes[fact.passage.id].text
    match = fact.kind.pattern.search(text)
    return match is not None and match["entity"] == entity and not any(_named(text, name) for name in fact.names)


def _fact(one: _Found, other: _Found, changes: Mapping[str, Passage]) -> Fact:
    question = one.kind.question.format(one.subject)
    return Fact(one.kind.name, one.subject, one.passage.id, question, (one.names, other.names), tuple(changes))


def substituted(text: str, new: Mapping[str, str]) -> str:
    """The text with every whole-word name replaced, all at once, and "a" or "an" before it set right."""
    names = "|".join(re.escape(name) for name in sorted(new, key=len, reverse=True))

    def other(match: re.Match[str]) -> str:
        name = new[match["name"]]
        article = match["article"] or ""
        if article:
            article = article[0] + ("n " if name[0] in "AEIOU" else " ")
        return article + name

    return re.sub(rf"(?P<article>\b[Aa]n? )?(?<!\w)(?P<name>{names})(?!\w)", other, text)


def _named(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
