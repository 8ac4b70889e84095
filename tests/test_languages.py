"""In ten languages: no token is outside all vectors, and a fact in the last sentence of a long text is found by its
vector and by its words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from latentrag.corpus import bounds_of, split
from latentrag.memory import Memory, add
from latentrag.retriever import BM25Retriever
from latentrag.types import Document, Passage

# Sentences to be repeated in turn, then the fact, then a question about it.
LANGUAGES = {
    "ko": (
        ["등대지기는 아침마다 밧줄을 살핀다.", "배가 들어오면 종을 두 번 친다."],
        "은빛 열쇠는 도서관 지하실에 있다.",
        "은빛 열쇠는 어디에 있나요?",
    ),
    "ja": (
        ["灯台守は毎朝ロープを調べる。", "船が港に入ると鐘を二度鳴らす。"],
        "銀の鍵は図書館の地下室にある。",
        "銀の鍵はどこにありますか",
    ),
    "zh": (
        ["守塔人每天早上检查缆绳。", "船进港时他敲两次钟。"],
        "银钥匙放在图书馆的地下室里。",
        "银钥匙放在哪里？",
    ),
    "th": (
        ["คนเฝ้าประภาคารตรวจเชือกทุกเช้า", "เมื่อเรือเข้าท่าเขาตีระฆังสองครั้ง"],
        "กุญแจเงินอยู่ในห้องใต้ดินของห้องสมุด",
        "กุญแจเงินอยู่ที่ไหน",
    ),
    "ar": (
        ["يفحص حارس المنارة الحبال كل صباح.", "عندما تدخل السفينة يقرع الجرس مرتين."],
        "المفتاح الفضي في قبو المكتبة.",
        "أين المفتاح الفضي؟",
    ),
    "he": (
        ["שומר המגדלור בודק את החבלים בכל בוקר.", "כשהאונייה נכנסת הוא מצלצל פעמיים."],
        "מפתח הכסף נמצא במרתף הספרייה.",
        "איפה מפתח הכסף?",
    ),
    "hi": (
        ["प्रकाशस्तंभ का रखवाला हर सुबह रस्सियाँ देखता है।", "जहाज़ आने पर वह दो बार घंटी बजाता है।"],
        "चाँदी की चाबी पुस्तकालय के तहख़ाने में है।",
        "चाँदी की चाबी कहाँ है?",
    ),
    "ru": (
        ["Смотритель маяка каждое утро проверяет канаты.", "Когда входит судно, он дважды бьёт в колокол."],
        "Серебряный ключ лежит в подвале библиотеки.",
        "Где лежит серебряный ключ?",
    ),
    "bg": (
        ["Пазачът на фара всяка сутрин проверява въжетата.", "Когато влезе кораб, той бие камбаната два пъти."],
        "Сребърният ключ е в мазето на библиотеката.",
        "Къде е сребърният ключ?",
    ),
    "de": (
        [
            "Der Leuchtturmwärter prüft jeden Morgen die Taue.",
            "Wenn ein Schiff einläuft, läutet er zweimal die Glocke.",
        ],
        "Der silberne Schlüssel liegt im Keller der Bibliothek.",
        "Wo liegt der silberne Schlüssel?",
    ),
}


UNSPACED = ("ja", "zh", "th")


class BagOfTokens:
    """A vector of how often each token is among the first 48, which rare tokens dominate. Byte-pair encoding, trained
    on the text; in scripts without spaces each character is a token."""

    name, max_tokens, scale = "bag", 48, 1.0

    def __init__(self, texts: Sequence[str], *, spaced: bool) -> None:
        self.tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        self.tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        whole = pre_tokenizers.Whitespace()
        self.tokenizer.pre_tokenizer = whole if spaced else pre_tokenizers.Split(Regex("."), "isolated")
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["[UNK]"], min_frequency=1, show_progress=False)
        self.tokenizer.train_from_iterator(texts, trainer)
        self.dimension = self.tokenizer.get_vocab_size()
        self.fingerprint = "bag"
        counts = np.bincount(self.tokenizer.encode("\n".join(texts)).ids, minlength=self.dimension)
        self.weights = 1 / np.sqrt(1 + counts)

    def ids(self, title: str, text: str) -> list[int]:
        return self.tokenizer.encode(f"{title}\n{text}").ids

    def count_tokens(self, title: str, text: str) -> int:
        return len(self.ids(title, text))

    def vector(self, ids: Sequence[int]) -> np.ndarray:
        counts = np.bincount(ids[: self.max_tokens], minlength=self.dimension) * self.weights
        return (counts / np.linalg.norm(counts)).astype(np.float32)

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.vector(self.ids(z.title, z.text)) for z in passages]))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_end_of_a_long_text_is_found(tmp_path: Path, language: str) -> None:
    sentences, fact, question = LANGUAGES[language]
    space = "" if language in UNSPACED else " "
    text = space.join([*(sentences * 60), fact])
    encoder = BagOfTokens([*sentences * 60, fact], spaced=language not in UNSPACED)
    document = Document("d", text, title=language)
    found = list(split(document, **bounds_of(encoder)))
    # No token is outside all vectors, and no character outside all passages.
    assert all(encoder.count_tokens(z.title, z.text) <= encoder.max_tokens for z in found)
    assert all(z.text == text[z.start : z.end] for z in found)
    assert "".join("".join(z.text.split()) for z in found) == "".join(text.split())
    add(tmp_path / "m.lance", found, lambda: encoder)
    memory = Memory.open(tmp_path / "m.lance")
    q = encoder.vector(encoder.ids("", question))
    ((best, *_),) = memory.search(q[None], 3).passages
    assert fact[-8:] in best.text
    (by_words,) = BM25Retriever(memory).retrieve([question], 1).passages
    assert fact[-8:] in by_words[0].text


def test_they_were_cut_off_before() -> None:
    """What the test above would have found: the fact beyond the tokens that are read."""
    sentences, fact, _ = LANGUAGES["zh"]
    encoder = BagOfTokens(sentences, spaced=False)
    whole = "".join([*(sentences * 60), fact])
    assert len(whole.split()) == 1
    cut = encoder.vector(encoder.ids("", whole.replace(fact, "")))
    assert (encoder.vector(encoder.ids("", whole)) == cut).all()
