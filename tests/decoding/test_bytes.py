"""What was sent is the answer, also where a character is spelled in bytes over several tokens."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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
CHARACTERS = [each.encode() for each in (*HIEROGLYPHS, "é", "中", "🦜", "a", "’", " the", "cat", " ", ".")]
LETTERS = sorted({bytes([byte]) for each in CHARACTERS for byte in each} | {b"\xff", b"\xe4"})
MIXED = {
    "fallback": [b" the", b"cat", b" "],
    "byte level": [b" the", b"cat", b" \xf0\x93", b"\x82\x80", b"\xf0\x93\x82"],
}


class SpellingGenerator(ToyGenerator):
    """Its tokens are bytes, and words. It says what is wanted, nearly surely, and then ends."""

    def __init__(self, kind: str, wanted: Sequence[bytes], *, certainty: float) -> None:
        self.detokenizer, self.numbers = KINDS[kind]
        self.table = [*LETTERS, *(each for each in MIXED[kind] if each not in LETTERS)]
        self.wanted = [self.table.index(each) + 1 for each in wanted]
        self.certainty = certainty
        super().__init__(len(self.table) + 1, seed=len(wanted), sharpness=1.0)

    def log_p(self, name: str, prefix: Sequence[int]) -> Tensor:
        logits = super().log_p(name, prefix)
        logits[self.wanted[len(prefix)] if len(prefix) < len(self.wanted) else 0] += self.certainty
        return torch.log_softmax(logits, dim=0)

    def real(self, ids: Sequence[int]) -> list[int]:
        return [0 if token == 0 else self.numbers[self.table[token - 1]] for token in ids]

    def text(self, ids: Sequence[int]) -> str:
        return self.detokenizer.text(self.real(ids))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        return self.detokenizer.pieces(self.real(ids))


@st.composite
def spelled(draw) -> tuple[str, list[bytes]]:
    """A kind of tokenizer, and tokens of it: whole characters and stray bytes, in pieces."""
    kind = draw(st.sampled_from(list(KINDS)))
    parts = draw(st.lists(st.sampled_from([*CHARACTERS, *LETTERS]), min_size=1, max_size=5))
    content, tokens = b"".join(parts), []
    while content:
        options = [each for each in [*MIXED[kind], content[:1]] if content.startswith(each)]
        tokens.append(draw(st.sampled_from(options)))
        content = content[len(tokens[-1]) :]
    return kind, tokens


@settings(max_examples=150, deadline=None)
@given(
    spelling=spelled(),
    certainty=st.sampled_from([4.0, 30.0]),
    how=st.sampled_from([{"num_beams": 1}, {"num_beams": 2}, {"num_beams": 1, "sample": True, "seed": 3}]),
    max_tokens=st.integers(1, 16),
    stop=st.sampled_from([(), ("a",)]),
)
def test_what_was_sent_is_the_answer(spelling, certainty, how, max_tokens, stop) -> None:
    rag = Rag(FakeRetriever(passages(2)), SpellingGenerator(*spelling, certainty=certainty), k=2)
    answering = rag.answering(["x"], rag.asking(max_tokens=max_tokens, stop=stop, **how))
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
