"""Every family gives sentence-transformers' own vectors, and keeps them when it is saved and loaded again."""

import re
from pathlib import Path

import pytest
import torch

from latentrag.encoder import SentenceEncoder, load_passage_encoder
from latentrag.encoder.tokens import UNLIMITED
from latentrag.protocols import CountsTokens, PassageEncoder
from latentrag.types import Passage
from tests.encoder.families import (
    FAMILIES,
    TOLERANCE,
    Family,
    differences,
    dpr_differences,
    ours,
    title,
)

DOCS = Path(__file__).parents[2] / "docs" / "encoders.md"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_vectors_are_sentence_transformers_own(family: Family, tmp_path) -> None:
    folder = tmp_path / "encoder"
    family.write(folder)
    assert max(differences(folder)) < TOLERANCE
    encoder = load_passage_encoder(folder)
    assert isinstance(encoder, SentenceEncoder)
    encoder.save(tmp_path / "saved")
    again = load_passage_encoder(tmp_path / "saved")
    assert again.fingerprint == encoder.fingerprint
    assert again.max_tokens == encoder.max_tokens
    for before, after in zip(ours(folder), ours(tmp_path / "saved"), strict=True):
        assert torch.equal(before, after)
    assert max(differences(tmp_path / "saved")) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_count_of_tokens_says_what_is_read_whole(family: Family, tmp_path) -> None:
    family.write(tmp_path)
    check_count(load_passage_encoder(tmp_path))


def check_count(encoder: PassageEncoder) -> None:
    """Of a passage that fits the last word moves the vector, of a longer one no word at its end."""
    assert isinstance(encoder, CountsTokens)
    some = "paris london rome river book king".split() * 20
    texts = [" ".join(some[:number]) for number in range(1, 100)]
    counts = [encoder.count_tokens("a title", text) for text in texts]
    assert counts == sorted(counts)
    if encoder.max_tokens >= UNLIMITED:
        return
    number = sum(count <= encoder.max_tokens for count in counts)  # of words that fit
    assert 3 <= number < 90
    fitting, shorter, longer, other = encoder.encode_passages(
        [
            Passage("", text, "a title")
            for text in (texts[number - 1], texts[number - 2], texts[number + 7], f"{texts[number + 6]} rome rome rome")
        ]
    )
    assert not torch.allclose(fitting, shorter, atol=TOLERANCE)
    assert torch.allclose(longer, other, atol=TOLERANCE)


def test_dpr(tmp_path) -> None:
    assert max(dpr_differences(tmp_path)) < TOLERANCE


def test_dpr_counts_the_pair(passage_folder) -> None:
    check_count(load_passage_encoder(passage_folder))


def test_the_table_in_the_docs_has_every_family_and_its_differences() -> None:
    """Made by ``python -m tests.encoder.families``."""
    rows = [line for line in DOCS.read_text("utf-8").splitlines() if re.fullmatch(r"\|.*e[+-]\d\d \|", line)]
    assert len(rows) == len(FAMILIES) + 1
    for family, line in zip(FAMILIES, rows, strict=False):
        assert line.startswith(title(family))
    assert all(float(cell) < TOLERANCE for line in rows for cell in line.split("|")[-3:-1])
