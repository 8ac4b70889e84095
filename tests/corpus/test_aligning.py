"""A text that is read again is cut where it was; ids name what they named, whatever was edited."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.corpus.aligning import Stored
from latentrag.corpus.splitting import split
from latentrag.ids import id_of_part, ids_among, is_of, names_over
from latentrag.types import Document, Passage

WORDS = 10
NAME = "a.txt"


def counted(num_words: int, mark: str = "z") -> list[str]:
    return [f"{mark}{i}" for i in range(num_words)]


def updated(old: Sequence[Passage], text: str, *, words: int = WORDS, name: str = NAME, **options) -> list[Passage]:
    """The passages of a text, beside those that a memory has of the same file."""
    by_id = {passage.id: passage for passage in old}
    stored = Stored(name, ids_among(sorted(by_id)), lambda ids: [by_id[key] for key in ids], **options)
    return list(split(Document(name, text), words=words, stored=stored))


def fresh(words: Sequence[str]) -> list[Passage]:
    return list(split(Document(NAME, " ".join(words)), words=WORDS))


def num_new(old: Sequence[Passage], new: Sequence[Passage]) -> int:
    """How many texts have no vector yet."""
    known = {passage.text for passage in old}
    return len({passage.text for passage in new} - known)


def check(text: str, old: Sequence[Passage], new: Sequence[Passage]) -> None:
    """What holds of every update."""
    assert [word for z in new for word in z.text.split()] == text.split()
    assert all(text[z.start : z.end] == z.text for z in new)
    assert len({z.id for z in new}) == len(new)
    assert all(WORDS // 2 <= len(z.text.split()) <= WORDS * 3 // 2 for z in new[:-1])
    of_old, of_new = {z.id: z.text for z in old}, {z.id: z.text for z in new}
    kept = Counter(of_new[key] for key in of_old.keys() & of_new.keys())
    assert all(of_old[key] == of_new[key] for key in of_old.keys() & of_new.keys())
    assert kept == Counter(of_old.values()) & Counter(of_new.values())  # as many as have their text


# One edit


def test_one_word_in_front_of_fifty_passages_changes_one() -> None:
    old = list(split(Document(NAME, " ".join(counted(5_000)))))
    text = " ".join(["one", *counted(5_000)])
    new = updated(old, text, words=100)
    assert [len(z.text.split()) for z in new] == [101] + 49 * [100]
    assert [z.id for z in new[1:]] == [z.id for z in old[1:]]
    assert new[0].id != old[0].id
    assert updated(new, text, words=100) == new


@pytest.mark.parametrize(
    ("edit", "most"),
    [
        (lambda w: [*w[:23], "x", *w[23:]], 1),
        (lambda w: [*w[:20], "x", *w[20:]], 1),
        (lambda w: [*w, "x"], 1),
        (lambda w: w[:23] + w[24:], 1),
        (lambda w: w[:23] + w[29:], 1),
        (lambda w: w[:27] + w[33:], 1),
        (lambda w: w[:25] + ["x"] * 2 + w[26:], 1),
        (lambda w: w[:25] + counted(30, "x") + w[25:], 4),
        (lambda w: w[:20] + w[40:60] + w[20:40] + w[60:], 0),
        (lambda w: w[:25] + w[42:61] + w[25:42] + w[61:], 5),
        (lambda w: w[50:] + w[:50], 0),
        (lambda w: w + w, 0),
    ],
)
def test_an_edit_changes_the_passages_it_touches(edit: Callable[[list[str]], list[str]], most: int) -> None:
    old = fresh(counted(100))
    text = " ".join(edit(counted(100)))
    new = updated(old, text)
    check(text, old, new)
    assert num_new(old, new) <= most


def test_passages_with_the_same_text_have_ids_of_their_own() -> None:
    old = fresh(["a"] * 55)
    assert len({z.id for z in old}) == 6
    text = " ".join(["b", *["a"] * 65])
    check(text, old, updated(old, text))


def test_a_passage_that_comes_back_has_its_id_again() -> None:
    old = fresh(counted(40))
    without = updated(old, " ".join(counted(40)[:10] + counted(40)[20:]))
    assert old[1].id not in {z.id for z in without}
    assert updated(without, " ".join(counted(40))) == old


def test_a_document_that_was_one_passage() -> None:
    """Its id is the document's, until the text is another."""
    old = fresh(counted(10))
    assert [z.id for z in old] == [NAME]
    grown = updated(old, " ".join(counted(20)))
    assert [z.id for z in grown] == [NAME, id_of_part(NAME, grown[1].text)]
    other = updated(old, "other")
    assert [z.id for z in other] == [id_of_part(NAME, "other")]
    third = updated(other, "third")
    assert NAME not in {z.id for z in third}


# What a memory has from elsewhere


def test_numbered_ids_of_before_stay() -> None:
    old = [replace(z, id=f"{NAME}#{i}") for i, z in enumerate(fresh(counted(95)))]
    assert updated(old, " ".join(counted(95))) == old
    new = updated(old, " ".join(["one", *counted(95)]))
    assert [z.id for z in new[1:]] == [z.id for z in old[1:]]
    assert new[0].id == id_of_part(NAME, new[0].text)


def test_passages_of_another_length_are_cut_anew_unless_all_are_kept() -> None:
    old = list(split(Document(NAME, " ".join(counted(95))), words=30))
    text = " ".join(counted(95))
    assert [z.text for z in updated(old, text)] == [z.text for z in fresh(counted(95))]
    assert updated(old, text, cuts="all") == old
    assert [z.text for z in updated(fresh(counted(95)), text, words=12, cuts="none")] == [
        z.text for z in split(Document(NAME, text), words=12)
    ]


def test_bounds_hold_for_what_is_kept() -> None:
    """A passage that is longer than its encoder reads is cut where it was, and the others stay."""
    old = fresh(counted(95))
    text = " ".join(counted(95)).replace("z33", "z33" * 9)
    old = updated(old, text)
    stored = Stored(NAME, ids_among(sorted(z.id for z in old)), lambda ids: [z for z in old if z.id in ids], cuts="all")
    new = list(split(Document(NAME, text), words=WORDS, max_chars=50, stored=stored))
    assert [z for z in new if z in old] == [z for z in old if len(z.text) <= 50]
    assert all(len(z.text) <= 50 for z in new)


def test_a_renamed_file_is_cut_as_it_was_under_ids_of_its_own() -> None:
    old = updated(fresh(counted(95)), " ".join(["one", *counted(95)]))
    text = " ".join(["one", *counted(95)])
    new = updated(old, text, name="b.txt", was=NAME)
    assert [z.text for z in new] == [z.text for z in old]
    assert [z.id for z in new] == [id_of_part("b.txt", z.text) for z in old]


def test_rows_without_ids_are_known_by_their_text() -> None:
    def read(rows: Sequence[str], old: Sequence[Passage]) -> list[Passage]:
        by_id = {z.id: z for z in old}
        stored = Stored("r.jsonl", ids_among(sorted(by_id)), lambda ids: [by_id[key] for key in ids])
        documents = (Document(f"r.jsonl:{i}", row) for i, row in enumerate(rows, 1))
        return [z for document in documents for z in split(document, words=WORDS, stored=stored)]

    first = read(["one", "two", "two"], [])
    assert [z.id for z in first] == ["r.jsonl:1", "r.jsonl:2", "r.jsonl:3"]
    second = read(["zero", "one", "two", "two"], first)
    assert [z.id for z in second] == [id_of_part("r.jsonl:1", "zero"), "r.jsonl:1", "r.jsonl:3", "r.jsonl:2"]
    assert read(["zero", "one", "two", "two"], second) == second
    third = read(["new", "two"], first)
    assert [z.id for z in third] == [id_of_part("r.jsonl:1", "new"), "r.jsonl:2"]


def test_an_id_that_a_row_states_stays_whatever_its_text() -> None:
    stored = Stored("r.jsonl", ids_among(["own"]), lambda _: [Passage("own", "old", start=0, end=3)])
    assert [z.id for z in split(Document("own", "new"), stored=stored)] == ["own"]
    assert len({z.id for z in split(Document("own", " ".join(counted(30))), words=WORDS, stored=stored)}) == 3


# Ids


def test_what_an_id_is_of() -> None:
    assert all(is_of(key, "a.txt") for key in ("a.txt", "a.txt#3", "a.txt#0123456789ab"))
    assert not any(is_of(key, "a.txt") for key in ("a.txt2", "a.txt#x", "a.txt:1", "b/a.txt", "a.txt#0123456789abc"))
    assert names_over("d/a.jsonl:3#0123456789ab") == {"d/a.jsonl:3", "d/a.jsonl"}
    assert names_over("d/a.txt#7") == {"d/a.txt"}
    assert names_over("own") == set()
    under = ids_among(sorted(["a", "a#1", "a#2", "a.b", "a:1", "a:1#2", "b"]))
    assert under("a", True) == ["a", "a#1", "a#2", "a:1", "a:1#2"]
    assert under("a", False) == ["a#1", "a#2", "a:1", "a:1#2"]


# Any edits


@dataclass
class Edits:
    """How many words were put in, and how many places were touched."""

    words: list[str]
    fresh: int = 0
    num_inserted: int = 0
    num_places: int = 0
    made: list[str] = field(default_factory=list)

    def apply(self, kind: str, place: int, length: int, to: int) -> None:
        words, place = self.words, place % (len(self.words) + 1)
        taken = words[place : place + length]
        new = [f"n{self.fresh + i}" for i in range(length)]
        self.fresh += length
        if kind == "insert":
            self.words = words[:place] + new + words[place:]
        elif kind == "delete":
            self.words = words[:place] + words[place + length :]
        elif kind == "replace":
            self.words = words[:place] + new + words[place + length :]
        else:  # move, copy
            rest = words[:place] + words[place + length :] if kind == "move" else words
            to %= len(rest) + 1
            self.words = rest[:to] + taken + rest[to:]
        self.num_inserted += 0 if kind == "delete" else length
        self.num_places += 2 if kind == "move" else 1


EDIT = st.tuples(
    st.sampled_from(["insert", "delete", "replace", "move", "copy"]),
    st.integers(0, 300),
    st.integers(1, 40),
    st.integers(0, 300),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 200), st.lists(st.lists(EDIT, max_size=3), max_size=6), st.booleans())
def test_any_edits(num_words: int, rounds: list, alike: bool) -> None:
    """With words that are all different, and with such that are hardly so."""
    edits = Edits(counted(num_words))
    old = fresh(edits.words)
    named = {z.id: z.text for z in old}
    for each in rounds:
        edits.num_inserted = edits.num_places = 0
        for edit in each:
            edits.apply(*edit)
        text = " ".join(word[:1] if alike else word for word in edits.words)
        new = updated(old, text)
        check(text, old, new)
        if not old:  # what has no passage is a new document, whose ids begin anew
            named = {}
        assert all(named.setdefault(z.id, z.text) == z.text for z in new)
        if not alike:
            assert num_new(old, new) <= 3 * edits.num_places + edits.num_inserted / (WORDS / 2)
        assert updated(new, text) == new
        old = new


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.lists(EDIT, min_size=1, max_size=3), st.integers(0, 30))
def test_an_update_that_was_killed_ends_as_if_it_had_not_been(num_words: int, edits: list, num_written: int) -> None:
    """Killed, a memory has some of the new passages from the first on, and all old ones that these did not replace."""
    of_text = Edits(counted(num_words))
    old = fresh(of_text.words)
    for edit in edits:
        of_text.apply(*edit)
    text = " ".join(of_text.words)
    expected = updated(old, text)
    halfway = {z.id: z for z in (*old, *expected[:num_written])}
    assert updated(list(halfway.values()), text) == expected
