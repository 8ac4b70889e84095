"""Text in other encodings than UTF-8: marked, stated by the user, or guessed and reported."""

import gzip
import json
import re
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from latentrag.corpus import Ledger, passages, read
from latentrag.errors import DataError, InputError
from latentrag.options import ReadingOptions

GERMAN = "Am Abend geht der Wärter über die Brücke – er löscht das Öl und schließt die Tür."
RUSSIAN = "Вечером смотритель идёт через мост, гасит лампу и закрывает дверь на ночь."
CZECH = "Večer hlídač přejde přes most, zhasne lampu a zavře dveře; klíč pak pověsí vedle okna, kde ho každý najde."
JAPANESE = "夕方になると番人は橋を渡り、ランプの油を消して、夜のあいだ扉を閉めておきます。"
KOREAN = "저녁이 되면 지기는 다리를 건너 등불을 끄고 밤새 문을 닫아 둡니다."
CHINESE = "傍晚看守人走过桥，熄灭灯里的油，夜里把门关上。"
THAI = "ตอนเย็นคนเฝ้าเดินข้ามสะพาน ดับตะเกียง แล้วปิดประตูตลอดคืน"


def read_one(path, **options):
    ledgers: list[Ledger] = []
    (document,) = read(path, on_ledger=ledgers.append, **options)
    return document, ledgers[0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("text", "encoding", "known_as"),
    [
        (GERMAN, "cp1252", "cp1252"),
        ("It\u2019s the keeper\u2019s boat.\n", "cp1252", "cp1252"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "koi8-r", "koi8_r"),
        (CZECH, "cp1250", "cp1250"),
        (JAPANESE, "cp932", "cp932"),
        (KOREAN, "cp949", "cp949"),
        (CHINESE, "gb18030", "gb18030"),
        (THAI, "cp874", "cp874"),
    ],
)
def test_text_without_a_mark_that_is_not_utf8_is_guessed_and_the_ledger_says_so(
    tmp_path, text, encoding, known_as, workers
):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    document, ledger = read_one(tmp_path / "a.txt", workers=workers)
    assert (document.text, ledger.encoding, ledger.is_guess) == (text, known_as, True)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [GERMAN, "plain ASCII", RUSSIAN, CHINESE + " Nr. 7\n"])
def test_utf_16_is_read_with_and_without_a_mark(tmp_path, text, encoding):
    (tmp_path / "a.md").write_bytes(text.encode(encoding))
    assert read_one(tmp_path / "a.md")[0].text == text
    (tmp_path / "a.md").write_bytes(("\ufeff" + text).encode(encoding))
    document, ledger = read_one(tmp_path / "a.md")
    assert (document.text, ledger.encoding, ledger.is_guess) == (text, "utf-16", False)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_user_states_holds_where_the_file_has_no_mark(tmp_path, workers):
    (tmp_path / "a.txt").write_bytes(GERMAN.encode("cp850", "replace"))
    document, ledger = read_one(tmp_path / "a.txt", encoding="cp850", workers=workers)
    assert (document.text, ledger.encoding, ledger.is_guess) == (GERMAN.replace("–", "?"), "cp850", False)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + GERMAN.encode())
    assert read_one(tmp_path / "a.txt", encoding="cp850", workers=workers)[0].text == GERMAN
    (tmp_path / "a.txt").write_bytes(b"\x81")
    with pytest.raises(DataError, match=r"not cp1252 text \(byte 0x81 at offset 0\)"):
        list(passages(tmp_path, encoding="cp1252", workers=workers))


ROWS = [{"id": str(i), "text": text} for i, text in enumerate(["plain", GERMAN, "plain again", GERMAN])]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("raw", "options", "expected"),
    [
        (LINES.encode("cp1252"), {}, ("cp1252", True)),
        (LINES.encode("cp1252"), {"encoding": "cp1252"}, ("cp1252", False)),
        (("\ufeff" + LINES).encode("utf-16-le"), {}, ("utf-16", False)),
        (LINES.encode("utf-16-be"), {"encoding": "utf-16-be"}, ("utf-16-be", False)),
        (("\ufeff" + LINES).encode(), {"encoding": "cp1252"}, ("utf-8", False)),
    ],
)
def test_rows_are_read_line_by_line_in_any_encoding(tmp_path, name, raw, options, expected):
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    ledgers: list[Ledger] = []
    documents = list(read(tmp_path / name, on_ledger=ledgers.append, **options))
    assert [(d.id, d.text) for d in documents] == [(row["id"], row["text"]) for row in ROWS]
    assert (ledgers[0].encoding, ledgers[0].is_guess) == expected


@pytest.mark.parametrize(
    ("name", "raw", "place"),
    [
        ("a.jsonl", '{"text": "é"}\n'.encode() + b"caf\xe9\n", " line 2: not UTF-8 text (byte 0xe9 at offset 3)"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n{"text": "\x00"}\n', " line 1: not UTF-8 text (byte 0xe9 at offset 13)"),
        ("a.tsv", "1\té\tT\n".encode() + b"caf\xe9\n", " line 2: not UTF-8 text (byte 0xe9 at offset 3)"),
        ("a.txt", b"t\ncaf\xe9\x00\n", ": not UTF-8 text (byte 0xe9 at offset 5)"),
        ("a.md", b"\xef\xbb\xbfcaf\xe9\n", ": not UTF-8 text (byte 0xe9 at offset 6)"),
        ("a.txt", b"\xff\xfea", ": not UTF-16 text (byte 0x61 at offset 2)"),
    ],
)
def test_what_nothing_can_tell_is_refused_with_the_place(tmp_path, name, raw, place):
    (tmp_path / name).write_bytes(raw)
    remedy = "; save it as UTF-8, or say with --encoding what it is"
    with pytest.raises(DataError, match=re.escape(f"{name}{place}{remedy}")):
        list(read(tmp_path / name))


def test_rows_before_a_wrong_utf_16_line_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(('\ufeff{"text": "t"}\n').encode("utf-16-le") + b"x")
    documents = read(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl line \d: not UTF-16 text"):
        list(documents)


def test_without_the_library_nothing_is_guessed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    (tmp_path / "a.txt").write_bytes(GERMAN.encode("cp1252"))
    with pytest.raises(DataError, match="say with --encoding what it is"):
        list(read(tmp_path / "a.txt"))


@pytest.mark.parametrize("name", ["cp12522", "rot13", "base64", "hex"])
def test_an_encoding_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=f"encoding='{name}' is unknown; needed the name of one, as utf-16 or cp1252"):
        ReadingOptions(encoding=name)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError):
        read(tmp_path / "a.txt", encoding=name)


@given(st.text())
def test_utf8_is_never_taken_for_another_encoding(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    if "\x00" in text:
        text = text.replace("\x00", "")
    path.write_bytes(text.encode())
    document, ledger = read_one(path)
    assert (document.text, ledger.encoding) == (text.removeprefix("\ufeff"), "utf-8")
