"""split and passages: the paper's 100-word passages, their offsets and their ids."""

import re
from bisect import bisect_right
from dataclasses import replace
from itertools import islice, pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from latentrag.corpus import Ledger, passages, split
from latentrag.corpus.aligning import Stored
from latentrag.errors import DataError, InputError
from latentrag.ids import id_of_part, ids_among
from latentrag.types import Document, Passage
from latentrag.words import MAX_UNSPACED_CHARS, MAX_WORD_CHARS, words

# Words and white space of every kind, the kinds that only Unicode knows included.
texts = st.lists(st.one_of(st.text(), st.sampled_from([" ", "\n", "\r\n", "\u2003", "\x1c", "\x85"]))).map("".join)
# Words that white space alone sets apart: of scripts without spaces no more than a name has.
spaced = texts.filter(lambda text: all(len(word) <= MAX_UNSPACED_CHARS for word in text.split()))


@given(spaced, st.integers(1, 5))
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


@given(spaced, st.integers(1, 5), st.booleans(), st.lists(st.integers(0, 30)).map(sorted))
def test_passages_are_those_of_earlier_memories(text, words, whole, page_starts):
    document = Document("d", text, "T", "s", page_starts=tuple(page_starts), whole=whole)
    earlier = {z.id: z for z in earlier_split(document, words)}
    stored = Stored("d", ids_among(sorted(earlier)), lambda ids: [earlier[key] for key in ids], cuts="all")
    found = list(split(document, words=words, stored=stored))
    assert [replace(z, fields={}) for z in found] == list(earlier.values())
    assert [replace(z, id="") for z in split(document, words=words)] == [replace(z, id="") for z in found]
    for z in found:
        last_page = bisect_right(page_starts, z.end - 1)
        assert z.fields == ({} if z.page in (None, last_page) else {"end_page": last_page})


def test_fields_are_carried_and_ids_are_of_texts():
    document = Document("d", " one two\nthree  four five ", title="T", source="s.txt", page_starts=(0, 8, 9, 20))
    assert list(split(document, words=2)) == [
        Passage(id_of_part("d", "one two"), "one two", "T", "s.txt", start=1, end=8, page=1),
        Passage(id_of_part("d", "three  four"), "three  four", "T", "s.txt", start=9, end=20, page=3),
        Passage(id_of_part("d", "five"), "five", "T", "s.txt", start=21, end=25, page=4),
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
        (id_of_part("b.txt", "one two"), "one two"),
        (id_of_part("b.txt", "three"), "three"),
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


# Words


@pytest.mark.parametrize(
    "text",
    [
        "don't  go-to (U.S.) https://example.org/a?b=c,d",
        "서울은 대한민국의 수도이다.",
        "Mao (Chinese: 毛泽东; 毛澤東) led 中華人民共和國.",
        "กรุงเทพมหานคร Bangkok",
    ],
)
def test_words_stand_between_white_space_and_so_do_names_in_another_script(text):
    assert [text[start:end] for start, end in words(text)] == text.split()


@pytest.mark.parametrize(
    ("text", "some"),
    [
        ("渔船队长清点救生衣（旧的），遇假日顺延一天。“灯塔”管理处测量水深。", "渔船 救生衣 （旧 一天。 “灯塔” 水深。"),
        ("灯台守は毎朝六時に鐘を鳴らし、船が港に入るのを待っていた。", "灯台守 は 毎朝 鐘 を 船 港 に 入る た。"),
        ("กุญแจของเรือนกนางนวลอยู่กับสมชาย", "กุญแจ ของ อยู่ กับ สมชาย"),
        ("ភាសាខ្មែរជាភាសាផ្លូវការរបស់កម្ពុជា", "ភាសាខ្មែរ ជា របស់ កម្ពុជា"),
        ("\U00020000\U00020000渔船队长每天早上检查缆绳然后通知码头和灯塔管理处", "渔船 每天 通知 码头 灯塔"),
    ],
)
def test_words_of_scripts_without_spaces_are_looked_up(text, some):
    found = [text[start:end] for start, end in words(text)]
    assert "".join(found) == text
    assert set(some.split()) <= set(found)
    assert len(found) > len(text) / 8


letters = st.sampled_from("aé\ud800, .(\u0301灯塔のกุ១한\U00020000 ")


@given(st.text(letters, max_size=120), st.integers(0, 2), st.integers(1, 3))
def test_every_character_is_in_one_word(part, num_long, times):
    text = f"{part * times} {'x' * MAX_WORD_CHARS} " + f"{part}{'y+/' * 400}{part} " * num_long
    found = list(words(text))
    assert "".join(text[start:end] for start, end in found) == "".join(text.split())
    assert all(before[1] <= after[0] for before, after in pairwise(found))
    assert sum(end - start > MAX_WORD_CHARS for start, end in found) == num_long


def test_a_long_text_without_spaces_is_cut_like_one_with_spaces():
    text = "渔船队长每天早上检查缆绳，然后通知码头。" * 50
    found = list(split(Document("d", text)))
    assert "".join(z.text for z in found) == text
    assert {sum(1 for _ in words(z.text)) for z in found[:-1]} == {100}
    assert max(len(z.text) for z in found) < 300


# Data in place of text


@pytest.mark.parametrize("whole", [False, True])
def test_data_is_left_out_and_what_is_around_it_is_not(whole):
    data = "iVBORw0KGgo+AAAN/SUhEUg" * 1_000
    text = f"one two ![picture](data:image/png;base64,{data}==) three " + "w " * 150
    ledger = Ledger("d")
    found = list(split(Document("d", text, whole=whole), leave_out=ledger.leave_out))
    assert found[0].text == "one two ![picture](data:image/png;base64,"
    assert [z.text[:10] for z in found[1:]] == [") three w ", *([] if whole else ["w w w w w "])]
    (one, number), (characters, num_chars) = ledger.left_out.items()
    assert (one.startswith("word of more than 1,000 characters"), number) == (True, 1)
    assert (characters, num_chars) == ("character of such words", len(data) + 2)
    assert sum(len("".join(z.text.split())) for z in found) + num_chars == len("".join(text.split()))


def test_data_in_a_file_is_in_its_ledger(tmp_path):
    (tmp_path / "a.txt").write_text("A" * 2_700_000)
    (tmp_path / "b.txt").write_text(f"one {'é' * 1_001} two")
    for workers in (0, 1):
        ledgers: list[Ledger] = []
        found = list(passages(tmp_path, on_ledger=ledgers.append, workers=workers))
        assert [(z.id, z.text) for z in found] == [(id_of_part("b.txt", each), each) for each in ("one", "two")]
        assert [list(ledger.left_out.values()) for ledger in ledgers] == [[1, 2_700_000], [1, 1_001]]


def test_long_lines_without_spaces_are_text():
    text = ",".join(f"name{i}:value" for i in range(2_000))
    found = list(split(Document("d", text)))
    assert "".join(z.text for z in found) == text
    assert max(len(z.text) for z in found) <= 4_000


# Bounds


def count_tokens(title: str, text: str) -> int:
    """A tokenizer that knows pieces of three characters, and adds two of its own."""
    return 2 + sum(-(-len(word) // 3) for word in f"{title} {text}".split())


@given(st.text(st.sampled_from("ab \n\u3042\u0301")), st.text("ab ", max_size=8), st.integers(1, 5), st.booleans())
def test_passages_are_bounded_in_tokens_and_characters_and_lose_nothing(text, title, words, whole):
    document = Document("d", text, title=title, whole=whole)
    most = 2 * count_tokens(title, "") + 2
    found = list(split(document, words=words, count_tokens=count_tokens, max_tokens=most, max_chars=7))
    assert "".join("".join(z.text.split()) for z in found) == "".join(text.split())
    for z in found:
        assert z.text == text[z.start : z.end]
        assert z.title == title
        assert count_tokens(title, z.text) <= most
        assert len(z.text) <= 7
        assert whole or len(z.text.split()) <= words


@given(st.text(), st.integers(1, 4), st.booleans())
def test_bounds_that_are_wide_enough_change_nothing(text, words, whole):
    document = Document("d", text, whole=whole)
    bounded = split(document, words=words, count_tokens=count_tokens, max_tokens=10_000, max_chars=10_000)
    assert list(bounded) == list(split(document, words=words))


def test_a_passage_beyond_a_bound_becomes_few_of_nearly_equal_length_and_the_next_begin_where_they_did():
    text = "one three seventeen a b " + "c " * 5
    bounded = split(Document("d", text), words=5, count_tokens=count_tokens, max_tokens=5)
    assert [z.text for z in bounded] == ["one three", "seventeen", "a b", "c c c", "c c"]
    assert [z.text for z in split(Document("d", text), words=5)] == ["one three seventeen a b", "c c c c c"]
    long = "".join(f"{'x' * (i % 7 + 1)} " for i in range(100))
    lengths = [len(z.text) for z in split(Document("d", long), max_chars=100)]
    assert len(lengths) == 6  # of 499 characters, with some room for whole words
    assert min(lengths) > 70


def test_a_word_beyond_the_bound_is_cut_between_the_characters_that_are_seen():
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    text = f"e\u0301e\u0301e\u0301 {family}{family}"
    assert [z.text for z in split(Document("d", text), max_chars=5)] == [
        "e\u0301e\u0301",
        "e\u0301",
        family,
        family,
    ]
    assert [z.text for z in split(Document("d", family), max_chars=2)] == [family[:2], family[2:4], family[4:]]


def test_few_tokens_are_counted_of_a_long_document():
    counted = []

    def count(title: str, text: str) -> int:
        counted.append(len(text))
        return len(text)

    text = "x" * 999 + " " + "word " * 20_000
    assert len(list(split(Document("d", text, whole=True), count_tokens=count, max_tokens=100))) > 1_000
    assert sum(counted) < 4 * len(text)


def test_a_title_that_leaves_no_room_is_shortened():
    left_out: dict[str, int] = {}
    document = Document("d", "w " * 50, title="long " * 9)
    found = list(split(document, count_tokens=count_tokens, max_tokens=20, leave_out=left_out.__setitem__))
    assert {z.title for z in found} == {"long long long long…"}
    assert sum(len(z.text.split()) for z in found) == 50
    assert all(count_tokens(z.title, z.text) <= 20 for z in found)
    assert left_out == {"character at the end of a title that is too long for the encoder": 25}


def test_a_bound_without_room_for_a_character_is_an_error():
    with pytest.raises(DataError, match="a single character of 'd' goes beyond the bound"):
        list(split(Document("d", "a"), count_tokens=count_tokens, max_tokens=2))


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [
        ({"max_tokens": 3}, "got one of count_tokens and max_tokens"),
        ({"count_tokens": count_tokens}, "got one of count_tokens and max_tokens"),
        ({"count_tokens": count_tokens, "max_tokens": 0}, "max_tokens=0 leaves nothing"),
        ({"max_chars": 0}, "max_chars=0 leaves nothing"),
    ],
)
def test_bounds_that_make_no_sense(tmp_path, bounds, problem):
    with pytest.raises(InputError, match=problem):
        split(Document("d", "text"), **bounds)
    with pytest.raises(InputError, match=problem):
        passages(tmp_path, **bounds)


def test_passages_of_files_are_bounded_too(tmp_path):
    (tmp_path / "a.txt").write_text("一二三四五")
    found = list(passages(tmp_path, count_tokens=lambda _, text: len(text), max_tokens=2))
    assert found == [
        Passage(id_of_part("a.txt", text), text, "a", str(tmp_path / "a.txt"), 2 * i, 2 * i + len(text))
        for i, text in enumerate(["一二", "三四", "五"])
    ]
