"""What was sent is the answer, also where a character is spelled in bytes over several tokens."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.decoding.answering import Answered, Begun
from latentrag.generator.tokens import Detokenizer, whole_characters
from latentrag.rag import Rag
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages

BYTES = {number: number for number in range(256)}
HIEROGLYPHS = "𓂀𓆣𓅓𒀭"


def fallback() -> tuple[Detokenizer, dict[bytes, int]]:
    """Words with spaces, and a token for every byte, as in Llama and Gemma."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "cat", "▁", ".", "中"]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(numbers, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    said = {bytes([byte]): numbers[f"<0x{byte:02X}>"] for byte in range(256)}
    return Detokenizer(fast), {**said, b" the": numbers["▁the"], b"cat": numbers["cat"], b" ": numbers["▁"]}


def byte_level() -> tuple[Detokenizer, dict[bytes, int]]:
    """Tokens of any bytes, as in GPT-2 and Qwen."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    shown = bytes_to_unicode()
    mixed = [b" the", b"cat", b" \xf0\x93", b"\x82\x80", b"\x80a", b"\xf0\x93\x82"]
    said = [*(bytes([byte]) for byte in range(256)), *mixed]
    words = ["</s>", *("".join(shown[byte] for byte in each) for each in said)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    return Detokenizer(fast), {each: number for number, each in enumerate(said, start=1)}


KINDS = {"fallback": fallback(), "byte level": byte_level()}
"""Detokenizer, and the number of each token by its bytes."""
TABLES = {
    "fallback": [b"\xf0", b"\x93", b"\x82", b"\x80", b"\xe4", b"\xb8", b"\xad", b"a", b" the", b"cat", b" ", b"\xff"],
    "byte level": [
        b"\xf0",
        b"\x93",
        b"\x82",
        b"\x80",
        b"a",
        b" the",
        b" \xf0\x93",
        b"\x82\x80",
        b"\x80a",
        b"\xf0\x93\x82",
    ],
}
"""What a toy's tokens say, from 1 on."""


class SpellingGenerator(ToyGenerator):
    """Its tokens are bytes, and words."""

    def __init__(self, kind: str, seed: int) -> None:
        self.detokenizer, self.numbers = KINDS[kind]
        self.table = TABLES[kind]
        super().__init__(len(self.table) + 1, seed=seed, sharpness=1.0)

    def real(self, ids: Sequence[int]) -> list[int]:
        return [0 if token == 0 else self.numbers[self.table[token - 1]] for token in ids]

    def text(self, ids: Sequence[int]) -> str:
        return self.detokenizer.text(self.real(ids))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        return self.detokenizer.pieces(self.real(ids))


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    seed=st.integers(0, 10**6),
    how=st.sampled_from([{"num_beams": 1}, {"num_beams": 2}, {"num_beams": 1, "sample": True, "seed": 3}]),
    max_tokens=st.integers(1, 9),
    stop=st.sampled_from([(), ("a",)]),
)
def test_what_was_sent_is_the_answer(kind, seed, how, max_tokens, stop) -> None:
    rag = Rag(FakeRetriever(passages(2)), SpellingGenerator(kind, seed), k=2)
    answering = rag.answering(["x"], max_tokens=max_tokens, min_tokens=max_tokens - 1, stop=stop, **how)
    sent: list[str] = []
    answer = None
    while answering.live:
        for event in answering.step():
            if isinstance(event, Begun):
                sent += [token.text for token in event.tokens[len(sent) :]]
                assert "\ufffd" not in sent[-1][-1:]  # half a character is never sent
            elif isinstance(event, Answered):
                answer = event.answer
    assert answer is not None
    sent += [token.text for token in answer.tokens[len(sent) :]]
    assert "".join(sent) == answer.text == "".join(token.text for token in answer.tokens)
    assert answer.hypotheses[0].text.startswith(answer.text)


@given(st.lists(st.integers(0, 255), max_size=12))
def test_bytes_of_whole_characters_are_kept(content) -> None:
    kept = whole_characters(content, BYTES)
    text = bytes(kept).decode()  # is valid
    assert text == bytes(content).decode(errors="ignore")
    for end in range(len(content)):
        assert kept[: len(whole_characters(content[:end], BYTES))] == whole_characters(content[:end], BYTES)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_character_is_said_once_and_a_cut_keeps_those_before_it(kind) -> None:
    detokenizer, numbers = KINDS[kind]
    ids = [numbers[bytes([byte])] for byte in HIEROGLYPHS.encode()]
    expected = [character if place == 3 else "" for character in HIEROGLYPHS for place in range(4)]
    assert detokenizer.pieces(ids) == expected
    for end in range(len(ids) + 1):
        assert detokenizer.text(ids[:end]) == HIEROGLYPHS[: end // 4]
        assert detokenizer.pieces(ids[:end]) == expected[:end]


def test_emoji_are_sent_when_they_are_complete() -> None:
    from latentrag.decoding.answering import settled_length

    assert settled_length("yes 🦜", ()) == 5
    assert settled_length("yes 🦜\ufffd", ()) == 5
    assert settled_length("yes 🦜 '", ()) == 5
