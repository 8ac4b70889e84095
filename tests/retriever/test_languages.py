"""BM25 in every language: words that stand in the passage are found, however they are written."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrag.retriever import BM25Retriever
from latentrag.types import Passage
from latentrag.words import folded, terms
from tests.retriever.test_bm25 import FakeMemory, found


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


CASES = [
    ("Chinese", "老张在山顶小屋里修理旧收音机并给花园浇水", "收音机"),
    ("Chinese, a name", "老张在王家湾修理水车", "王家湾"),
    ("Chinese, one character", "他在门口卖茶", "茶"),
    ("Japanese", "写真家は冬の湖で白鳥を待っていた", "白鳥"),
    ("Japanese katakana", "古いカメラとフィルムを売る店", "カメラ"),
    ("Thai", "แม่ครัวเก็บช้อนเงินไว้ในตู้สีเขียว", "ช้อนเงิน"),
    ("Khmer", "គាត់លក់សៀវភៅនៅផ្សារចាស់", "សៀវភៅ"),
    ("Korean, another ending", "도서관에서는 책갈피를 나누어 주었다", "책갈피는 어디에서"),
    ("Korean in two parts", "겨울올림픽경기장", "올림픽"),
    ("Hindi", "पुराना पुल नदी के पास है", "पुल"),
    ("Arabic with vowel signs", "المِفْتَاحُ في الدُّرْجِ", "المِفْتَاحُ"),
    ("Arabic, stretched", "الســـلام عليكم", "السلام"),
    ("Hebrew", "הספר נמצא על המדף העליון", "המדף"),
    ("Russian", "Фонарщик зажёг лампу", "ЗАЖЁГ"),
    ("German in NFD", nfd("Die Brücke über die Mühle"), "Brücke Mühle"),
    ("question in NFD", "Die Fähre zum Gärtner", nfd("Gärtner")),
    ("ligatures", "a ﬂat ﬁle of aﬃne maps", "flat affine"),
    ("soft hyphens", "die Kraft\u00adfahr\u00adzeug\u00adsteuer", "Kraftfahrzeugsteuer"),
    ("sharp s", "Die große Straße", "GROSSE STRASSE"),
    ("full width", "電話５６７８ ＡＢＣ", "5678 abc"),
    ("one letter", "grade D timber", "D"),
    ("signs", "a compiler for C++ and a port to F#", "C++"),
    ("signs of another", "the C compiler", "a C compiler"),
    ("Greek sigma", "ΟΔΥΣΣΕΥΣ", "Οδυσσευς"),
]


@pytest.mark.parametrize(("case", "text", "question"), CASES, ids=[case for case, *_ in CASES])
def test_every_question_finds_its_passage(case, text, question):
    memory = FakeMemory([Passage(name, each) for name, each, _ in CASES])
    ids, scores = found(BM25Retriever(memory), question, 1)
    assert ids == [case]
    assert scores[0] > 0


def test_the_words_of_plain_english_are_what_they_were():
    """So that the scores of existing memories stay; ``test_bm25`` compares those."""
    text = "It's the U.S. Navy's C++ group: 3rd, x_1; Mr. K. O'Neil (a)"
    assert terms(text).words == ["it", "the", "navy", "group", "3rd", "x_1", "mr", "neil"]
    assert terms(text).parts == ["u", "s", "c++", "k", "o", "a"]
    assert terms(f"{text} – é").words == terms(text).words


@given(st.text("ab1+#'’ _-", max_size=12))
def test_plain_english_has_the_same_terms_beside_another_script(text):
    found = terms(f"{text} 山")
    assert (terms(text).words, [*terms(text).parts, "山"]) == tuple(found)
    assert terms("'C++' a+b 10+").parts == ["c++", "a", "b"]


def test_what_only_looks_different_is_folded():
    assert folded("Ａｂ\u00adc ﬁ Straße ①½ \u0e00") == "abc fi strasse 11⁄2 \u0e00"
    assert folded("1½ km²") == "1 1⁄2 km2"
    assert terms("1½").words == []


def test_parts_are_pairs_of_characters_with_their_marks():
    assert terms("날씨가 K팝").parts == ["날씨", "씨가"]
    assert terms("날씨가 K팝").words == ["날씨가", "k팝"]
    assert terms("นี้ใหม่").parts == ["นี้ใ", "ให", "หม่"]
    assert "山顶" in terms("在山顶")[1]
