"""Tokens as text: all at once, and a piece for each."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrag.generator.tokens import Detokenizer

WORDS = ["the", "▁the", "▁moon", "▁", "moon", "'", "▁'", "é", ".", "\n"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def tokenizers() -> dict[str, Any]:
    """Bytes as tokens of their own (SentencePiece's kind), and words whose spaces are mended (BERT's)."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    of_bytes = Tokenizer(
        models.BPE({token: number for number, token in enumerate(["</s>", *BYTES, *WORDS])}, [], byte_fallback=True)
    )
    of_bytes.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = ["[UNK]", "o", "'", "##brien", "-", "moon", "##s", ".", "??", "?"]
    of_words = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    joined = [decoders.Replace(f" {mark} ", mark) for mark in ("-", "'")]
    of_words.decoder = decoders.Sequence([decoders.WordPiece(cleanup=True), decoders.Fuse(), *joined])
    return {
        "bytes": PreTrainedTokenizerFast(tokenizer_object=of_bytes, eos_token="</s>"),
        "words": PreTrainedTokenizerFast(tokenizer_object=of_words, unk_token="[UNK]"),
    }


TOKENIZERS = tokenizers()


class Counting:
    """A tokenizer that counts what it is asked to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.num_decoded = tokenizer, 0

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        self.num_decoded += 1
        text: str = self.tokenizer.decode(ids, **options)
        return text


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_the_text_is_its_pieces_and_decoded_once(kind: str, data: st.DataObject) -> None:
    token = st.integers(0, len(TOKENIZERS[kind]) - 1)
    cue, ids = data.draw(st.lists(token, max_size=2)), data.draw(st.lists(token, max_size=10))
    tokenizer = Counting(TOKENIZERS[kind])
    detokenizer = Detokenizer(tokenizer, cue=cue)
    tokenizer.num_decoded = 0
    text = detokenizer.text(ids)
    assert tokenizer.num_decoded == 1
    pieces = detokenizer.pieces(ids)
    assert "".join(pieces) == text
    assert len(pieces) == len(ids)
    if not cue:
        whole = TOKENIZERS[kind].decode(ids, skip_special_tokens=True).strip()
        assert whole.startswith(text) if whole.endswith("\ufffd") else whole == text
        # Bytes of a character that the end cuts off say nothing, and white space at the end is no text.
        assert not whole[len(text) :].replace("\ufffd", "").strip()


def test_a_character_of_several_bytes_belongs_to_the_last() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.convert_tokens_to_ids(["▁moon", "<0xC3>", "<0xA9>", "."])
    assert Detokenizer(tokenizer).pieces(ids) == ["moon", "", "é", "."]
