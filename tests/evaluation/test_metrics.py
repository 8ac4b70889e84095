import pytest

from latentrag.evaluation.metrics import (
    contains_answer,
    contains_match,
    contains_unspaced,
    exact_match,
    is_unspaced,
    is_wordless,
    regex_match,
    token_f1,
)
from latentrag.words import normalised


def test_normalised() -> None:
    assert normalised(" The  Beatles' (1960s) album, a ") == "beatles 1960s album"
    assert normalised("theatre anthem") == "theatre anthem"


def test_exact_match() -> None:
    assert exact_match("the Eiffel Tower.", ["Big Ben", "Eiffel tower"])
    assert not exact_match("Eiffel", ["Eiffel Tower"])


def test_regex_match() -> None:
    assert regex_match(" september 12", "Sept?(ember)?|Feb(ruary)?")
    assert not regex_match("in September", "Sept?(ember)?")


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("It is in Paris, France.", "paris", True),
        ("Parisian life", "Paris", False),
        ("Everyone knows who wrote it.", "The Who", False),
        ("She told us so.", "U.S.", False),
        ("The U.S. Senate", "U.S.", True),
        ("some 35 people", "3.5", False),
        ("3.5 people", "3.5", True),
        ("blood of type A", "A", True),
        ("Beyonce\u0301 sang", "Beyonc\u00e9", True),
        ("Beyonc\u00e9 sang", "Beyonce\u0301", True),
        ("Beyonc\u00e9 sang", "Beyonce", False),
        ("the rock 'n' roll", "rock 'n' roll", True),
        ("anything", "", False),
        ("anything", " \u200b", False),
        ("東京は日本の首都です", "東京", False),  # one run of letters: DPR's measure is not for such text
    ],
)
def test_answers_are_found_as_dpr_finds_them(text, answer, held) -> None:
    assert contains_answer(text, ["Zanzibar", answer]) == held
    assert contains_answer(text, []) is False


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("東京は日本の首都です", "東京", True),
        ("京都府の中心", "東京", False),
        ("フランスの首都", "ラン", False),  # within a run of katakana
        ("サッカーの試合", "サッカー", True),
        ("ｻｯｶｰの試合", "サッカー", True),
        ("北京是中国的首都", "中国", True),
        ("กรุงเทพเป็นเมืองหลวงของประเทศไทย", "กรุงเทพ", True),
        ("สวัสดี", "ส", True),
        ("กี่คน", "ก", False),  # its vowel belongs to it
        ("수도는 서울은 아니다", "서울", True),
        ("수도는 서울이다", "서울", True),
        ("한서울", "서울", False),  # no particle comes before
        ("2018년에 BTS는 유엔에서", "BTS", True),
        ("2018년에 BTS는 유엔에서", "2018년", True),
        ("2018년에 BTS는 유엔에서", "018년", False),
        ("대한 민국의 수도", "대한 민국", True),
        ("대한 민국의 수도", "대한 의", False),
        ("It is in Paris", "Par", False),
        ("", "東京", False),
        ("東京", "", False),
    ],
)
def test_answers_are_found_where_words_are_not_spaced(text, answer, held) -> None:
    assert contains_unspaced(text, ["Zanzibar", answer]) == held


def test_which_answers_are_unspaced() -> None:
    assert [is_unspaced(answer) for answer in ("Paris", "東京", "カナ", "서울", "กรุงเทพ", "Москва", "τ", "1945")] == [
        *[False, True, True, True, True],
        *[False, False, False],
    ]


def test_answers_of_which_normalisation_leaves_nothing_are_compared_as_they_stand() -> None:
    for answer in ("The The", "A", "!!!", "?", "...", "$", "the a"):
        assert is_wordless(answer)
        for said in ("", " ", "the", "an", "!", "Paris"):
            assert exact_match(said, [answer]) == (said == answer.lower())
            assert (token_f1(said, [answer]) == 1) == (said == answer.lower())
        assert exact_match(f" {answer.upper()} ", ["Paris", answer])
        assert token_f1(f" {answer.upper()} ", ["Paris", answer]) == 1
    assert exact_match("a.", ["A"])
    assert not exact_match("", ["the"])
    assert not is_wordless("The Who")
    assert exact_match("Beyonc\u00e9", ["Beyonce\u0301"])


def test_token_f1() -> None:
    # The normalised words: {eiffel, tower, paris} against {eiffel, tower}: P = 2/3, R = 1.
    assert token_f1("the Eiffel Tower, Paris", ["Big Ben", "Eiffel tower"]) == pytest.approx(0.8)
    # Words count as often as they come: one of two against one of three.
    assert token_f1("la la", ["la di da"]) == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert token_f1("Rome", ["Paris"]) == 0
    assert (token_f1("", ["the"]), token_f1("", ["Paris"]), token_f1("x", [])) == (0, 0, 0)


def test_contains_match() -> None:
    assert contains_match("It was in SEPTEMBER, 1912", r"sept?(ember)?,\s*1912")
    assert not contains_match("It was in 1912", "sept")
    assert contains_match("first\nBeyonc\u00e9", "^Beyonce\u0301$")


@pytest.mark.parametrize(
    ("said", "answers", "matches", "f1"),
    [
        ("서울.", ["부산", "서울"], True, 1.0),  # punctuation goes, several answers, the best one counts
        ("서울은 한국의 수도", ["한국의 수도"], False, 0.8),  # particles stay: words are what stands between spaces
        ("서울은", ["서울"], False, 0.0),
        ("", ["서울"], False, 0.0),
        ("the U.S.", ["US", "America"], True, 1.0),
        ("3.5 %", ["35"], True, 1.0),  # SQuAD's: signs vanish and nothing takes their place
        ("well-known", ["wellknown", "well known"], True, 1.0),
        ("a cat, a dog", ["dog cat"], False, 1.0),  # F1 knows no order
    ],
)
def test_conventions_of_squad(said, answers, matches, f1) -> None:
    assert exact_match(said, answers) == matches
    assert token_f1(said, answers) == pytest.approx(f1)
