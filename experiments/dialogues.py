# ruff: noqa: E501  patterns stand in one line
"""Dialogues made by rule from the articles of the demo's corpus: questions, earlier turns, and answers that stand in the
article.

A fact is a sentence that fits a pattern: what it is asked by, with the article's title or a pronoun in the place of its
subject, and the answer, a part of the sentence. Kinds of dialogues, by what the last question is about:

same     the article of the turn before, named by a pronoun
linked   the article whose title was the answer of the turn before, named by a pronoun
ellipsis another article of the same kind; the last question names it and leaves out what is asked
change   another article that has nothing to do with the turns before, named by its title
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

NAME = r"[A-Z][\w’'.-]+(?:(?: (?:of|the|and|de|von|van|da|al|la))* [A-Z][\w’'.-]+)*"
YEAR = r"(?:1[0-9]|20)\d\d|[1-9]\d\d (?:AD|BC)"
COUNT = r"\d[\d,.]*(?: (?:million|billion))?"
OTHER = r"[^.,;()]+?"
_END = r"(?=[.,;]| and | who | which | that | where | by | in | until )"

PERSON: Mapping[str, tuple[str, str]] = {
    "born": ("Where was {s} born?", rf"\b[Bb]orn (?:[\w ]+ )?(?:in|at|near) (?P<a>{NAME})"),
    "died": ("When did {s} die?", rf"\b(?:died|death|assassinated|killed|executed)\b[^.;]* in (?P<a>{YEAR})"),
    "prize": (
        "Which prize did {s} win?",
        r"\b(?P<a>Nobel (?:Memorial )?(?:Peace )?Prize(?: (?:in|for) [A-Z]\w+)?|Turing Award|Fields Medal|Pulitzer Prize|Academy Award)",
    ),
    "known": (
        "What is {s} best known for?",
        rf"\b(?:best|mostly|chiefly|widely|primarily) known for (?:his |her |their )?(?P<a>{OTHER})(?=[.;,]| and | which )",
    ),
    "studied": (
        "Where did {s} study?",
        rf"\b(?:studied|educated|graduated|degree)\b[^.;]*? (?:at|from) (?:the )?(?P<a>(?:University of {NAME}|{NAME} (?:University|College|School|Institute[\w ]*)))",
    ),
    "taught": (
        "Where was {s} a professor?",
        rf"\b[Pp]rofessor\b[^.;]*? at (?:the )?(?P<a>(?:University of {NAME}|{NAME} (?:University|College|School|Institute[\w ]*)))",
    ),
    "founded": ("What did {s} found?", rf"\b(?:founded|co-founded|founder of|co-founder of) (?:the )?(?P<a>{NAME})"),
    "reign": (
        "From when did {s} rule?",
        rf"\b(?:reign\w*|ruled|ruler|[Kk]ing|[Qq]ueen|[Ee]mperor|[Ee]mpress|[Pp]ope|[Ss]ultan|[Tt]sar|[Pp]haraoh) [^.;]*?from (?:[\d]+ \w+ )?(?P<a>{YEAR})",
    ),
    "successor": ("Who succeeded {s}?", rf"\bsucceeded by (?:his |her )?(?:[a-z]+ )*(?P<a>{NAME})"),
    "married": ("Whom did {s} marry?", rf"\b(?:married|wife of|husband of) (?:[a-z]+ )*(?P<a>{NAME})"),
    "moved": ("Where did {s} move?", rf"\b(?:moved|emigrated|fled|went into exile) (?:to|in) (?:the )?(?P<a>{NAME})"),
    "child": ("Whose child was {s}?", rf"\b(?:son|daughter) of (?:the )?(?:[a-z]+ )*(?P<a>{NAME})"),
}
THING: Mapping[str, tuple[str, str]] = {
    "capital": ("What is {s} the capital of?", rf"\bcapital(?: and [\w\- ]+?)? of (?:the )?(?P<a>{NAME})"),
    "population": (
        "What is the population of {s}?",
        rf"\bpopulation of (?:about |around |approximately |over |nearly |more than |roughly |some |just )*(?P<a>{COUNT})",
    ),
    "founded": ("When was {s} founded?", rf"\b(?:founded|established)\b[^.;]*? in (?P<a>{YEAR})"),
    "founder": ("Who founded {s}?", rf"\b(?:founded|established)\b[^.;]*? by (?:[a-z]+ )*(?P<a>{NAME})"),
    "author": (
        "Who wrote {s}?",
        rf"\b(?:written|authored) by (?:[\w]+ ){{0,4}}?(?P<a>{NAME})|\b(?:novel|poem|play|book|epic|novella|tragedy|treatise|comedy)\b[^.;]*? by (?:[\w\-]+ ){{0,5}}?(?P<b>{NAME})",
    ),
    "director": ("Who directed {s}?", rf"\bdirected(?: and [a-z]+)* by (?P<a>{NAME})"),
    "composer": ("Who composed {s}?", rf"\bcomposed by (?:[a-z\-]+ )*(?P<a>{NAME})"),
    "painter": (
        "Who painted {s}?",
        rf"\b(?:painting|painted|fresco|portrait)\b[^.;]*? by (?:(?:the )?[\w\-]+ )*?(?:artist |painter )?(?P<a>{NAME})",
    ),
    "designer": ("Who designed {s}?", rf"\bdesigned by (?:[a-z\-]+ )*(?P<a>{NAME})"),
    "discoverer": ("Who discovered {s}?", rf"\bdiscovered\b[^.;]*? by (?:[a-z\-]+ )*(?P<a>{NAME})"),
    "inventor": ("Who invented {s}?", rf"\b(?:invented)\b[^.;]*? by (?:[\w\-]+ ){{0,4}}?(?P<a>{NAME})"),
    "discovered": ("When was {s} discovered?", rf"\bdiscovered\b[^.;]*? in (?P<a>{YEAR})"),
    "released": ("When was {s} released?", rf"\breleased\b[^.;]*? in (?P<a>{YEAR})"),
    "published": ("When was {s} published?", rf"\bpublished\b[^.;]*? in (?P<a>{YEAR})"),
    "built": ("When was {s} built?", rf"\b(?:built|completed|constructed|opened)\b[^.;]*? in (?P<a>{YEAR})"),
    "native": ("Where is {s} native to?", rf"\bnative to (?P<a>{OTHER})(?=[.;,]| and | where )"),
    "located": (
        "Where is {s} located?",
        rf"\b(?:located|situated|lies|stands) (?:in|on|at) (?P<a>{OTHER})(?=[.;,]| and | between | about )",
    ),
    "family": ("Which family does {s} belong to?", r"\bfamily (?P<a>[A-Z][a-z]+(?:idae|aceae|inae))"),
    "symbol": ("What is the symbol of {s}?", r"\bsymbol (?P<a>[A-Z][a-z]?)\b"),
    "number": ("What is the atomic number of {s}?", r"\batomic number (?P<a>\d+)"),
    "named": ("What is {s} named after?", rf"\bnamed (?:after|for|in honou?r of) (?:the )?(?P<a>{OTHER}){_END}"),
    "area": (
        "How large is {s}?",
        r"\b(?:area of|covers|covering) (?:about |around |approximately |over |nearly |some |an area of )*(?P<a>\d[\d,.]* (?:million )?(?:square kilometres|square kilometers|km2|sq mi|square miles))",
    ),
    "lasted": (
        "When did {s} begin?",
        rf"\b(?:fought|lasted|lasting|took place)\b[^.;]*? (?:from|in|between) (?:[A-Z]\w+ )?(?P<a>{YEAR})",
    ),
    "flows": (
        "Where does {s} flow into?",
        rf"\b(?:flows|empties|emptying|drains|flowing)\b[^.;]*? into (?:the )?(?P<a>{NAME})",
    ),
    "language": (
        "What is the official language of {s}?",
        r"\bofficial language(?:s)? (?:is|are|of [\w ]+ is) (?P<a>[A-Z]\w+)",
    ),
}
POSSESSIVE = {
    "population": "population",
    "symbol": "symbol",
    "number": "atomic number",
    "language": "official language",
}
PEOPLE = {"author", "director", "composer", "painter", "designer", "discoverer", "inventor", "founder"}
"""Facts whose answer is a person, who may have an article."""
BRIDGES = {*PEOPLE, "child", "married", "successor", "named"}

Turn = dict[str, str]


@dataclass(frozen=True, slots=True)
class Fact:
    """What an article says: asked with the title, or with a pronoun."""

    kind: str
    title: str
    named: str
    pronoun: str
    answer: str


@dataclass(frozen=True, slots=True)
class Article:
    """An article with its facts, and what its first sentence says it is."""

    title: str
    is_person: bool
    definition: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages of which the last is the question, its answer, and the article in which that stands."""

    id: str
    kind: str
    messages: tuple[Turn, ...]
    answer: str
    title: str

    @property
    def is_train(self) -> bool:
        """Half of them, by the hash of the id."""
        return hashlib.sha256(self.id.encode()).digest()[0] % 2 == 0

    def row(self) -> dict[str, object]:
        """As ``train`` and ``eval`` read it."""
        return {"id": self.id, "messages": list(self.messages), "answer": [self.answer], "title": self.title}


def article_of(title: str, text: str) -> Article | None:
    """None for one that says nothing of itself in its first sentence."""
    sentences = re.split(r"(?<=[.!?]) +(?=[A-Z])", " ".join(text.split()))
    shown = re.sub(r" \(.*\)$", "", title)
    found = re.search(
        r"\b(?:is|was|are|were) (?P<a>(?:an?|the|one of the) [^.;,]{8,70}?)(?=[.;,]| who | which | that | whose )",
        sentences[0],
    )
    if found is None:
        return None
    male, female = (
        len(re.findall(words, text)) for words in (r"\b(?:[Hh]e|[Hh]is|[Hh]im)\b", r"\b(?:[Ss]he|[Hh]er)\b")
    )
    is_person = male + female >= 2 and " (" not in title and len(shown.split()) <= 5
    person = ("he", "his") if male >= female else ("she", "her")
    facts = []
    for kind, (question, pattern) in (PERSON if is_person else THING).items():
        for sentence in sentences:
            match = re.search(pattern, sentence)
            if match is None:
                continue
            answer = next(group for group in match.groups() if group).strip(" .’'")
            if (kind in PEOPLE and " " not in answer) or (kind == "located" and answer == answer.lower()):
                continue  # a nationality, or a place without a name
            if answer.lower() in shown.lower() or shown.lower() in answer.lower() or not 1 <= len(answer) <= 60:
                continue
            he, his = person if is_person else ("it", "its")
            him = {"he": "him", "she": "her", "it": "it"}[he]
            owned = POSSESSIVE.get(kind, "")
            pronoun = question.replace(f"the {owned} of {{s}}", f"{his} {owned}")
            pronoun = pronoun.replace("{s}", him if kind in {*PEOPLE, "successor"} else he)
            facts.append(Fact(kind, title, question.format(s=shown), pronoun, answer))
            break
    return Article(title, is_person, found["a"], tuple(facts))


def _asks(question: str, answer: str) -> list[Turn]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _begun(article: Article) -> list[Turn]:
    shown = re.sub(r" \(.*\)$", "", article.title)
    return _asks(f"{'Who was' if article.is_person else 'What is'} {shown}?", article.definition)


def _first(article: Article, fact: Fact, rng: random.Random) -> list[Turn]:
    """The turn that opens: another fact of the article, or what it is."""
    others = [each for each in article.facts if each.kind != fact.kind]
    if others and rng.random() < 0.5:
        chosen = rng.choice(others)
        return _asks(chosen.named, chosen.answer)
    return _begun(article)


def dialogues(articles: Sequence[Article], number: int, *, seed: int = 0) -> list[Dialogue]:
    """So many of each kind, or as many as there are; at most one on each fact."""
    rng = random.Random(seed)  # noqa: S311
    makers = {"same": _same, "linked": _linked, "ellipsis": _ellipsis, "change": _change}
    made = []
    for kind, make in makers.items():
        found = list(make(articles, rng))
        rng.shuffle(found)
        made += [
            Dialogue(f"{kind}-{i}", kind, tuple(messages), fact.answer, fact.title)
            for i, (messages, fact) in enumerate(found[:number])
        ]
    return made


def _last(fact: Fact, *, pronoun: bool) -> Turn:
    return {"role": "user", "content": fact.pronoun if pronoun else fact.named}


Made = Iterator[tuple[list[Turn], Fact]]


def _same(articles: Sequence[Article], rng: random.Random) -> Made:
    for article in articles:
        for fact in article.facts:
            others = [each for each in article.facts if each.kind != fact.kind]
            turns = _first(article, fact, rng)
            if others and rng.random() < 0.5:  # three turns
                chosen = rng.choice(others)
                turns = [*_begun(article), *_asks(chosen.pronoun, chosen.answer)]
            yield [*turns, _last(fact, pronoun=True)], fact


def _linked(articles: Sequence[Article], rng: random.Random) -> Made:
    people = {article.title: article for article in articles if article.is_person}
    for article in articles:
        for fact in article.facts:
            person = people.get(fact.answer)
            if fact.kind not in BRIDGES or person is None:
                continue
            turns = _asks(fact.named, fact.answer)
            if rng.random() < 0.3:
                turns = [*_begun(article), *_asks(fact.pronoun, fact.answer)]
            who = Fact("who", person.title, "", "Who was that?", person.definition)
            for asked in person.facts or (who,):
                yield [*turns, _last(asked, pronoun=True)], asked


def _ellipsis(articles: Sequence[Article], rng: random.Random) -> Made:
    by_kind: dict[tuple[bool, str], list[Fact]] = defaultdict(list)
    for article in articles:
        for fact in article.facts:
            by_kind[article.is_person, fact.kind].append(fact)
    for facts in by_kind.values():
        rng.shuffle(facts)
        for first, second in zip(facts[::2], facts[1::2], strict=False):
            shown = re.sub(r" \(.*\)$", "", second.title)
            asked = rng.choice(("And {s}?", "What about {s}?", "And what about {s}?")).format(s=shown)
            yield [*_asks(first.named, first.answer), {"role": "user", "content": asked}], second


def _change(articles: Sequence[Article], rng: random.Random) -> Made:
    some = [article for article in articles if article.facts]
    for article in some:
        other = rng.choice(some)
        if other.title == article.title:
            continue
        fact = rng.choice(article.facts)
        before = rng.choice(other.facts)
        turns = _first(other, before, rng)
        if rng.random() < 0.5:
            turns = [*_begun(other), *_asks(before.pronoun, before.answer)]
        yield [*turns, _last(fact, pronoun=False)], fact
