"""What must not change the vectors: batches, order, padding, dropout. And what a question must be."""

import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentrag.encoder import load_passage_encoder, load_query_encoder
from latentrag.encoder.tokens import length_sorted_batches
from latentrag.errors import InputError
from latentrag.types import Passage
from tests.encoder.tiny import write_sentence_encoder

# Padding changes the order of float32 sums: some 1e-7 on values of at most 1 (the vectors are normalised).
ROUNDING = 1e-5

words = st.sampled_from(["paris", "hamlet", "the", "river", "queen", "xyz", ","])
texts = st.lists(words, min_size=1, max_size=30).map(" ".join)


@given(st.lists(st.integers(1, 50)), st.integers(1, 200))
def test_batches_hold_every_row_once_and_keep_the_budget(lengths, batch_tokens):
    batches = length_sorted_batches(lengths, batch_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(
        len(batch) == 1 or len(batch) * size <= batch_tokens for batch, size in zip(batches, longest, strict=True)
    )


@given(st.lists(texts, min_size=1, max_size=12), st.integers(1, 120))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_passages_vector_does_not_depend_on_its_neighbours(encoder, texts, batch_tokens):
    passages = [Passage(str(i), text, title="title" * (i % 2)) for i, text in enumerate(texts)]
    encoder.batch_tokens = batch_tokens
    together = encoder.encode_passages(passages)
    alone = torch.cat([encoder.encode_passages([passage]) for passage in passages])
    assert together.dtype == torch.float32
    assert torch.allclose(together, alone, rtol=0, atol=ROUNDING)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_passage_encoder(write_sentence_encoder(tmp_path_factory.mktemp("m"), head=["Normalize"]))


@pytest.mark.parametrize("batch_tokens", [1, 12, 4096])
def test_a_query_vector_and_its_gradient_do_not_depend_on_the_batches(query_folder, batch_tokens):
    x = ["who", "where was the queen born ?", "paris , france", "what is rome"]
    encoder = load_query_encoder(query_folder)
    encoder.batch_tokens = batch_tokens
    vectors = encoder.encode_queries(x)
    alone = torch.cat([encoder.encode_queries([question]) for question in x])
    # DPR's vectors are not normalised: values up to about 4.
    assert torch.allclose(vectors, alone, rtol=0, atol=4 * ROUNDING)
    weight = encoder.module.get_parameter("question_encoder.bert_model.embeddings.word_embeddings.weight")
    coefficients = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    together, one_by_one = (torch.autograd.grad((v * coefficients).sum(), weight)[0] for v in (vectors, alone))
    # Sums of some 100 products of that size.
    assert torch.allclose(together, one_by_one, rtol=1e-4, atol=1e-4)


def test_nothing_in_nothing_out(sentence_folder, query_folder, passage_folder):
    assert load_passage_encoder(sentence_folder).encode_passages([]).shape == (0, 16)
    assert load_passage_encoder(passage_folder).encode_passages([]).shape == (0, 16)
    assert load_query_encoder(query_folder).encode_queries([]).shape == (0, 16)


def test_more_passages_than_are_tokenised_at_once(encoder, monkeypatch):
    monkeypatch.setattr("latentrag.encoder.tokens.SLICE", 3)
    passages = [Passage(str(i), "paris " * (i % 5 + 1)) for i in range(8)]
    vectors = encoder.encode_passages(passages)
    assert torch.allclose(vectors[2], vectors[7], rtol=0, atol=ROUNDING)
    assert not torch.allclose(vectors[2], vectors[6], atol=1e-2)


def test_passages_are_encoded_without_dropout_while_a_model_trains(encoder):
    passages = [Passage("1", "the river in london")]
    before = encoder.encode_passages(passages)
    encoder.module.train()
    encoder.module.transformer.embeddings.eval()
    try:
        assert torch.equal(encoder.encode_passages(passages), before)
        assert encoder.module.training
        assert not encoder.module.transformer.embeddings.training
        assert not torch.equal(encoder.encode_queries(["the river"]), encoder.encode_queries(["the river"]))
    finally:
        encoder.module.eval()


def test_models_are_loaded_in_eval_mode(encoder, query_folder, passage_folder):
    for module in (
        encoder.module,
        load_query_encoder(query_folder).module,
        load_passage_encoder(passage_folder).module,
    ):
        assert not any(child.training for child in module.modules())


def test_progress_is_shown_on_stderr_and_only_when_asked(encoder, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    passages = [Passage("1", "paris"), Passage("2", "rome")]
    encoder.encode_passages(passages)
    assert capfd.readouterr() == ("", "")
    encoder.encode_passages(passages, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "2/2" in err


class TestQuestions:
    def test_the_longest_one_fits_and_one_token_more_does_not(self, encoder):
        assert encoder.max_tokens == 20
        encoder.encode_queries(["paris " * 18])
        with pytest.raises(InputError, match=r"^question 2 of 2 has 21 tokens but the query encoder reads 20; shorten"):
            encoder.encode_queries(["paris", "paris " * 19])

    @pytest.mark.parametrize("num_words", [40, 100])
    def test_the_number_of_tokens_is_right_however_long(self, query_folder, num_words):
        with pytest.raises(InputError, match=f"has {num_words + 2} tokens"):
            load_query_encoder(query_folder).encode_queries(["paris " * num_words])

    def test_a_prompt_counts(self, tmp_path):
        prompts = {"prompts": {"query": "query : "}}
        encoder = load_query_encoder(write_sentence_encoder(tmp_path / "m", prompts=prompts))
        encoder.encode_queries(["paris " * 16])
        with pytest.raises(InputError, match="21 tokens"):
            encoder.encode_queries(["paris " * 17])

    @pytest.mark.parametrize("blank", ["", "  \n\t"])
    def test_an_empty_one_is_refused(self, encoder, query_folder, blank):
        for each in (encoder, load_query_encoder(query_folder)):
            with pytest.raises(InputError, match="question 2 of 2 is empty"):
                each.encode_queries(["paris", blank])

    def test_one_text_is_not_a_list_of_texts(self, encoder):
        with pytest.raises(InputError, match="got one text, needed a list"):
            encoder.encode_queries("paris")

    def test_only_texts(self, encoder):
        with pytest.raises(InputError, match="got a int as a question; needed a text"):
            encoder.encode_queries([5])

    def test_half_a_surrogate_pair_is_refused(self, encoder):
        with pytest.raises(InputError, match="lone surrogates"):
            encoder.encode_queries(["paris \ud800"])


def test_batches_on_a_processor_are_small_unless_told_otherwise(encoder, monkeypatch):
    monkeypatch.setattr("latentrag.encoder.tokens.PROCESSOR_BATCH_TOKENS", 12)
    monkeypatch.setattr("latentrag.encoder.tokens.BATCH_TOKENS", 1)
    sizes = []
    forward = encoder.module.forward

    def counted(batch, *rest):
        sizes.append(len(batch["input_ids"]))
        return forward(batch, *rest)

    monkeypatch.setattr(encoder.module, "forward", counted)
    passages = [Passage(str(i), "paris rome") for i in range(7)]  # 4 tokens each
    monkeypatch.setattr(encoder, "batch_tokens", None)
    encoder.encode_passages(passages)
    assert sizes == [3, 3, 1]
    sizes.clear()
    monkeypatch.setattr(encoder, "batch_tokens", 28)
    encoder.encode_passages(passages)
    assert sizes == [7]
