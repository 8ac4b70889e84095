"""split and passages: the paper's 100-word passages, their offsets and their ids."""

import re
from bisect import bisect_right
from dataclasses import replace
from itertools import islice, pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from latentrag.corpus import passages, split
from latentrag.errors import DataError, InputError
from latentrag.types import Document, Passage

# Words and white space of every kind, the kinds that only Unicode knows included.
texts = st.lists(st.one_of(st.text(), st.sampled_from([" ", "\n", "\r\n", "\u2003", "\x1c", "\x85"]))).map("".join)


@given(texts, st.integers(1, 5))
def test_passages_hold_the_words_of_the_document_in_slices_of_it(text, words):
    document = Document(id="d", text=text)
    result = list(split(document, words=words))
    assert [word for z in result for word in z.text.split()] == text.split()
    assert all(len(z.text.split()) == words for z in result[:-1])
    assert all(1 <= len(z.text.split()) <= words for z in result[-1:])
    for z in result:
        assert z.text == text[z.start : z.end]
        assert z.text == z.text.strip()
    assert all(before.end < after.start for before, after in pairwise(result))


def earlier_split(document: Document, words: int) -> list[Passage]:
    """What splits documents in the memories that there are (commit 5cbb646): the oracle of what must not change."""
    text = document.text
    if document.whole:
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        spans = [(start, end)] if start < end else []
    else:
        spans = []
        found = re.finditer(r"\S+", text)
        while group := list(islice(found, words)):
            spans.append((group[0].start(), group[-1].end()))
    return [
        Passage(
            id=document.id if len(spans) == 1 else f"{document.id}#{i}",
            text=text[start:end],
            title=document.title,
            source=document.source,
            start=start,
            end=end,
            page=bisect_right(document.page_starts, start) or None,
        )
        for i, (start, end) in enumerate(spans)
    ]


@given(texts, st.integers(1, 5), st.booleans(), st.lists(st.integers(0, 30)).map(sorted))
def test_passages_are_those_of_earlier_memories(text, words, whole, page_starts):
    document = Document("d", text, "T", "s", page_starts=tuple(page_starts), whole=whole)
    found = list(split(document, words=words))
    assert [replace(z, fields={}) for z in found] == earlier_split(document, words)
    for z in found:
        last_page = bisect_right(page_starts, z.end - 1)
        assert z.fields == ({} if z.page in (None, last_page) else {"end_page": last_page})


def test_fields_are_carried_and_ids_numbered():
    document = Document("d", " one two\nthree  four five ", title="T", source="s.txt", page_starts=(0, 8, 9, 20))
    assert list(split(document, words=2)) == [
        Passage("d#0", "one two", "T", "s.txt", start=1, end=8, page=1),
        Passage("d#1", "three  four", "T", "s.txt", start=9, end=20, page=3),
        Passage("d#2", "five", "T", "s.txt", start=21, end=25, page=4),
    ]


def test_default_length_is_the_papers():
    lengths = [len(z.text.split()) for z in split(Document("d", "w " * 250))]
    assert lengths == [100, 100, 50]


@pytest.mark.parametrize("num_words", [1, 100])
def test_a_single_passage_keeps_the_documents_id(num_words):
    assert [z.id for z in split(Document("d", "w " * num_words))] == ["d"]


def test_a_whole_document_is_never_split():
    (passage,) = split(Document("7", f" {'w ' * 150}", whole=True), words=100)
    assert (passage.id, passage.start, passage.end) == ("7", 1, 300)
    assert len(passage.text.split()) == 150


@pytest.mark.parametrize("text", ["", " \n\t\u2003"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_document_without_words_gives_no_passage(text, whole):
    assert list(split(Document("d", text, whole=whole))) == []


@pytest.mark.parametrize("words", [0, -1])
def test_less_than_one_word_is_refused_at_the_call(words, tmp_path):
    with pytest.raises(InputError, match=f"words={words} is less than one word"):
        split(Document("d", "text"), words=words)
    with pytest.raises(InputError, match=f"words={words} is less than one word"):
        passages(tmp_path, words=words)


def test_passages_of_several_paths_in_their_order(tmp_path):
    (tmp_path / "b.txt").write_text("one two three")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("four")
    paths = (path for path in [tmp_path / "b.txt", str(tmp_path / "folder")])
    assert [(z.id, z.text) for z in passages(paths, words=2)] == [
        ("b.txt#0", "one two"),
        ("b.txt#1", "three"),
        ("a.txt", "four"),
    ]


def test_a_single_path_need_not_be_in_a_list(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert [z.id for z in passages(str(tmp_path / "a.txt"))] == ["a.txt"]
    assert [z.id for z in passages(tmp_path)] == ["a.txt"]


def test_a_missing_path_is_noticed_before_the_first_passage(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(DataError, match="missing"):
        passages([tmp_path / "a.txt", tmp_path / "missing"])


def test_files_that_would_share_an_id_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text("text")
        (tmp_path / folder / "rows.jsonl").write_text(f'{{"id": "{folder}", "text": "text"}}')
    with pytest.raises(DataError, match=r"would both have the id 'README\.md'"):
        passages([tmp_path / "a", tmp_path / "b"])
    assert [z.id for z in passages(tmp_path)] == ["a/README.md", "a", "b/README.md", "b"]
    rows = [tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"]
    assert [z.id for z in passages(rows)] == ["a", "b"]


def test_on_skip_is_passed_on(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nno')
    skipped = []
    assert [z.id for z in passages([tmp_path], on_skip=lambda path, _: skipped.append(path.name))] == ["a.jsonl:1"]
    assert skipped == ["a.jsonl"]
