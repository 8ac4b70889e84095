"""DPR's encoders against transformers' own classes, one text at a time and without padding."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DPRContextEncoder, DPRQuestionEncoder, PreTrainedTokenizerFast

from latentrag.encoder import DprPassageEncoder, DprQueryEncoder, load_passage_encoder, load_query_encoder
from latentrag.errors import InputError, ModelError
from latentrag.protocols import PassageEncoder, QueryEncoder
from latentrag.types import Passage
from tests.encoder.tiny import POSITIONS, write_dpr, write_json, write_tokenizer
from tests.toy import grad_of

# Padding changes the order of float32 sums: some 1e-7 on values near 1.
ROUNDING = 1e-5

QUESTIONS = ["who wrote hamlet ?", "paris", "what is the capital of france , england , italy ?"]
PASSAGES = [
    Passage("1", "paris is the capital of france .", "paris"),
    Passage("2", "a play", "hamlet"),
    Passage("3", "the river in london is the thames ."),
]


def tokenizer_of(folder):
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def direct(model_class, folder, *texts, segments=False, **options):
    """The pooler output for one text or pair; all of it segment 0, unless the tokenizer's ``segments`` are wanted."""
    model = model_class.from_pretrained(folder).eval()
    inputs = tokenizer_of(folder)(*texts, return_tensors="pt", padding=False, return_token_type_ids=segments, **options)
    with torch.no_grad():
        return model(**inputs).pooler_output[0]


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=ROUNDING)


def original_checkpoint(folder, query_folder, passage_folder):
    """Both encoders in one file, named as DPR's own code names them, with the configuration of plain BERT."""
    names = {
        "question_encoder.bert_model.": "question_model.",
        "ctx_encoder.bert_model.": "ctx_model.",
        "question_encoder.encode_proj.": "question_model.encode_proj.",
        "ctx_encoder.encode_proj.": "ctx_model.encode_proj.",
    }
    weights = {}
    for source in (query_folder, passage_folder):
        for key, tensor in load_file(source / "model.safetensors").items():
            prefix = next(prefix for prefix in names if key.startswith(prefix))
            weights[names[prefix] + key.removeprefix(prefix)] = tensor
    weights["question_model.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    folder.mkdir()
    save_file(weights, folder / "dpr.safetensors")
    config = DPRQuestionEncoder.config_class.from_pretrained(query_folder).to_dict()
    kept = {key: config[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    kept |= {key: config[key] for key in ("intermediate_size", "max_position_embeddings")}
    write_json(folder / "config.json", {"model_type": "bert", **kept})
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("projection_dim", [0, 6])
def test_query_vectors_are_those_of_transformers(tmp_path, projection_dim):
    folder = write_dpr(tmp_path / "q", "DPRQuestionEncoder", projection_dim=projection_dim)
    encoder: QueryEncoder = load_query_encoder(folder)
    vectors = encoder.encode_queries(QUESTIONS)
    assert vectors.dtype == torch.float32
    assert encoder.dimension == vectors.shape[1] == (projection_dim or 16)
    for vector, question in zip(vectors, QUESTIONS, strict=True):
        assert close(vector, direct(DPRQuestionEncoder, folder, question))


def test_passages_are_the_pair_of_title_and_text(passage_folder):
    encoder: PassageEncoder = load_passage_encoder(passage_folder)
    vectors = encoder.encode_passages(PASSAGES)
    assert close(vectors[0], direct(DPRContextEncoder, passage_folder, "paris", "paris is the capital of france ."))
    assert close(vectors[1], direct(DPRContextEncoder, passage_folder, "hamlet", "a play"))


def test_title_and_text_are_one_segment_as_in_dprs_own_code(passage_folder):
    """Its published vectors were made with segment ids of zero (generate_dense_embeddings.py)."""
    encoder = load_passage_encoder(passage_folder)
    (vector,) = encoder.encode_passages(PASSAGES[:1])
    pair = ("paris", "paris is the capital of france .")
    model, ids = DPRContextEncoder.from_pretrained(passage_folder).eval(), tokenizer_of(passage_folder)(*pair).input_ids
    with torch.no_grad():
        zeros = model(torch.tensor([ids]), token_type_ids=torch.zeros(1, len(ids), dtype=torch.long)).pooler_output[0]
    assert close(vector, zeros)
    assert not torch.allclose(vector, direct(DPRContextEncoder, passage_folder, *pair, segments=True), atol=0.1)


def test_a_passage_without_title_is_its_text_alone(passage_folder):
    vectors = load_passage_encoder(passage_folder).encode_passages(PASSAGES[2:])
    assert close(vectors[0], direct(DPRContextEncoder, passage_folder, PASSAGES[2].text))


def test_long_passages_are_cut_where_the_model_ends(passage_folder):
    encoder = load_passage_encoder(passage_folder)
    text = "paris , rome " * 20
    cut = direct(DPRContextEncoder, passage_folder, "rome", text, truncation=True, max_length=POSITIONS)
    assert encoder.max_tokens == POSITIONS
    assert close(encoder.encode_passages([Passage("1", text, "rome")])[0], cut)


def test_half_a_surrogate_pair_in_a_passage_is_read_as_a_question_mark(passage_folder):
    encoder = load_passage_encoder(passage_folder)
    broken, mended = encoder.encode_passages([Passage("1", "paris \ud800", "\udfff"), Passage("2", "paris ?", "?")])
    assert torch.equal(broken, mended)


def test_defaults_and_protocols(query_folder, passage_folder):
    query, passage = load_query_encoder(query_folder), load_passage_encoder(passage_folder)
    assert isinstance(query, DprQueryEncoder)
    assert isinstance(query, QueryEncoder)
    assert isinstance(passage, DprPassageEncoder)
    assert isinstance(passage, PassageEncoder)
    assert query.scale == passage.scale == 1.0
    assert query.passage_fingerprint is None
    assert passage.name == "dpr-passage"


@pytest.mark.parametrize("projection_dim", [0, 6])
def test_original_names_give_the_same_encoders(tmp_path, projection_dim):
    query_folder = write_dpr(tmp_path / "q", "DPRQuestionEncoder", projection_dim=projection_dim)
    passage_folder = write_dpr(tmp_path / "p", "DPRContextEncoder", projection_dim=projection_dim, seed=1)
    folder = original_checkpoint(tmp_path / "original", query_folder, passage_folder)
    queries = load_query_encoder(folder).encode_queries(QUESTIONS)
    assert torch.equal(queries, load_query_encoder(query_folder).encode_queries(QUESTIONS))
    mine, theirs = load_passage_encoder(folder), load_passage_encoder(passage_folder)
    assert torch.equal(mine.encode_passages(PASSAGES), theirs.encode_passages(PASSAGES))
    assert mine.fingerprint == theirs.fingerprint


def test_an_original_checkpoint_of_one_encoder_has_no_other(tmp_path, query_folder, passage_folder):
    folder = original_checkpoint(tmp_path / "original", query_folder, passage_folder)
    weights = load_file(folder / "dpr.safetensors")
    save_file({key: w for key, w in weights.items() if key.startswith("ctx_model.")}, folder / "dpr.safetensors")
    load_passage_encoder(folder)
    with pytest.raises(ModelError, match=r"has no weights question_model\.\*"):
        load_query_encoder(folder)


def test_the_wrong_one_of_the_two_is_refused(query_folder, passage_folder):
    with pytest.raises(ModelError, match="holds a DPRContextEncoder, needed a DPRQuestionEncoder"):
        load_query_encoder(passage_folder)
    with pytest.raises(ModelError, match="holds a DPRQuestionEncoder, needed a DPRContextEncoder"):
        load_passage_encoder(query_folder)


def test_a_projection_that_the_configuration_forgot_is_an_error(tmp_path):
    folder = write_dpr(tmp_path / "q", "DPRQuestionEncoder", projection_dim=6)
    config = (folder / "config.json").read_text().replace('"projection_dim": 6', '"projection_dim": 0')
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match="projection_dim=0"):
        load_query_encoder(folder)


def test_a_cased_model_sees_capitals(tmp_path):
    """transformers' DPR tokenizer classes lower-case whatever tokenizer.json says."""
    encoder = load_query_encoder(write_dpr(tmp_path / "q", "DPRQuestionEncoder", cased=True))
    small, capital = encoder.encode_queries(["paris", "Paris"])
    assert not torch.allclose(small, capital, atol=0.1)


def test_vocab_txt_will_do_for_a_tokenizer(query_folder):
    before = load_query_encoder(query_folder).encode_queries(QUESTIONS)
    words = tokenizer_of(query_folder).get_vocab()
    (query_folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n")
    (query_folder / "tokenizer.json").unlink()
    assert torch.equal(load_query_encoder(query_folder).encode_queries(QUESTIONS), before)


def test_queries_carry_gradients_and_passages_do_not(query_folder, passage_folder):
    query, passage = load_query_encoder(query_folder), load_passage_encoder(passage_folder)
    q, d = query.encode_queries(QUESTIONS), passage.encode_passages(PASSAGES)
    assert not d.requires_grad
    (q @ d.T).logsumexp(1).sum().backward()
    grads = {name: grad_of(p) for name, p in query.module.named_parameters()}
    assert grads["question_encoder.bert_model.embeddings.word_embeddings.weight"].abs().sum() > 0
    with torch.no_grad():
        assert not query.encode_queries(QUESTIONS).requires_grad


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_positive(query_folder, scale):
    with pytest.raises(InputError, match="is not a positive number"):
        load_query_encoder(query_folder, scale=scale)


def test_passage_vectors_are_those_of_the_memory_with_a_gradient(passage_folder):
    encoder = load_passage_encoder(passage_folder)
    encoder.batch_tokens = 20  # several batches
    vectors = encoder.passage_vectors(PASSAGES)
    assert torch.equal(vectors, encoder.encode_passages(PASSAGES))
    assert vectors.dtype == torch.float32
    vectors[1].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.module.parameters())
    with torch.no_grad():
        assert not encoder.passage_vectors(PASSAGES).requires_grad
    assert not encoder.encode_passages(PASSAGES).requires_grad
    # In the module's mode: dropout if it is trained with it, which a memory never sees.
    encoder.module.train()
    assert not torch.allclose(encoder.passage_vectors(PASSAGES), vectors, atol=0.01)
    assert torch.equal(encoder.encode_passages(PASSAGES), vectors)


def test_queries_are_paired_with_another_passage_encoder_and_saved_so(query_folder, tmp_path):
    encoder = load_query_encoder(query_folder, passage_fingerprint="one")
    encoder.pair_with("other")
    assert encoder.passage_fingerprint == "other"
    encoder.save(tmp_path / "saved")
    assert load_query_encoder(tmp_path / "saved").passage_fingerprint == "other"
