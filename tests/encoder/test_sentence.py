"""Sentence encoders against a slow reference: one text at a time, unpadded, pooled token by token."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from latentrag.encoder import SentenceEncoder, load_passage_encoder, load_query_encoder
from latentrag.errors import InputError, ModelError
from latentrag.place import Place
from latentrag.protocols import PassageEncoder, QueryEncoder
from latentrag.types import Passage
from tests.encoder.tiny import sizes, vocabulary, write_dense, write_json, write_sentence_encoder, write_tokenizer

POOLINGS = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

# Padding changes the order of float32 sums: some 1e-7 on values near 1.
ROUNDING = 1e-5

QUESTIONS = ["who wrote hamlet ?", "paris", "what is the capital of france , england , italy ?"]
PASSAGES = [
    Passage("1", "paris is the capital of france .", "paris"),
    Passage("2", "a play", "hamlet"),
    Passage("3", "the river in london is the thames ."),
]


def hidden_states(folder, text, *, max_length=20):
    """A list of token vectors, and the tokens."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    inputs = tokenizer(text, return_tensors="pt", padding=False, truncation=True, max_length=max_length)
    with torch.no_grad():
        hidden = BertModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0]
    return list(hidden.double())


def pooled(tokens, mode, *, skipped=0):
    """One mode, by its definition; the first ``skipped`` tokens are left out, but keep their places."""
    kept = list(enumerate(tokens, start=1))[skipped:]
    if mode == "cls":
        return kept[0][1]
    if mode == "lasttoken":
        return kept[-1][1]
    if mode == "max":
        return torch.stack([torch.stack([token[i] for _, token in kept]).max() for i in range(len(kept[0][1]))])
    weights = [place if mode == "weightedmean" else 1 for place, _ in kept]
    total = sum(weight * token for weight, (_, token) in zip(weights, kept, strict=True))
    return total / (math.sqrt(len(kept)) if mode == "mean_sqrt_len_tokens" else sum(weights))


def close(a, b):
    return torch.allclose(a.double(), b.double(), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("mode", POOLINGS)
def test_each_pooling_is_its_definition(tmp_path, mode):
    folder = write_sentence_encoder(tmp_path / "m", modes=[mode])
    vectors = load_query_encoder(folder).encode_queries(QUESTIONS)
    for vector, question in zip(vectors, QUESTIONS, strict=True):
        assert close(vector, pooled(hidden_states(folder, question), mode))


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(POOLINGS, 2)))
def test_no_two_poolings_agree(tmp_path, one, other):
    """Otherwise the test above could not tell them apart."""
    folder = write_sentence_encoder(tmp_path / "m")
    tokens = hidden_states(folder, QUESTIONS[2])
    assert not torch.allclose(pooled(tokens, one), pooled(tokens, other), atol=0.05)


def test_several_poolings_are_concatenated_in_the_layouts_order(tmp_path):
    folder = write_sentence_encoder(tmp_path / "m", modes=["mean", "cls", "max"])
    encoder = load_query_encoder(folder)
    assert encoder.dimension == 48
    tokens = hidden_states(folder, QUESTIONS[0])
    expected = torch.cat([pooled(tokens, mode) for mode in ("cls", "max", "mean")])
    assert close(encoder.encode_queries(QUESTIONS[:1])[0], expected)


@pytest.mark.parametrize("named", ["lasttoken", ["max", "cls"]])
def test_newer_folders_name_the_mode(tmp_path, named):
    folder = write_sentence_encoder(tmp_path / "m")
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": named})
    tokens = hidden_states(folder, QUESTIONS[0])
    expected = torch.cat([pooled(tokens, mode) for mode in ([named] if isinstance(named, str) else named)])
    assert close(load_query_encoder(folder).encode_queries(QUESTIONS[:1])[0], expected)


@pytest.mark.parametrize("mode", ["mean", "max", "weightedmean", "mean_sqrt_len_tokens"])
def test_a_prompt_can_be_left_out_of_the_pooling(tmp_path, mode):
    prompts = {"prompts": {"query": "query : "}}
    folder = write_sentence_encoder(tmp_path / "m", modes=[mode], include_prompt=False, prompts=prompts)
    vectors = load_query_encoder(folder).encode_queries(QUESTIONS)
    for vector, question in zip(vectors, QUESTIONS, strict=True):
        tokens = hidden_states(folder, "query : " + question)
        assert close(vector, pooled(tokens, mode, skipped=3))  # [CLS] query :
    assert load_passage_encoder(folder).encode_passages(PASSAGES).isfinite().all()


def test_dense_then_normalise(tmp_path):
    folder = write_sentence_encoder(tmp_path / "m", head=["Dense", "Normalize"])
    encoder = load_query_encoder(folder)
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    mean = pooled(hidden_states(folder, QUESTIONS[0]), "mean")
    dense = (weights["linear.weight"].double() @ mean + weights["linear.bias"].double()).tanh()
    assert encoder.dimension == 5
    assert close(encoder.encode_queries(QUESTIONS[:1])[0], dense / dense.norm())


@pytest.mark.parametrize(
    ("prompts", "query", "passage"),
    [
        (None, "", ""),
        ({"prompts": {}}, "", ""),
        ({"prompts": {"query": "query : ", "document": "page : "}}, "query : ", "page : "),
        ({"prompts": {"query": "query : ", "passage": "passage : "}}, "query : ", "passage : "),
        ({"prompts": {"q": "title : "}, "default_prompt_name": "q"}, "title : ", "title : "),
        ({"prompts": {"query": "query : ", "q": "title : "}, "default_prompt_name": "q"}, "query : ", "title : "),
        ({"prompts": {"q": "title : "}, "default_prompt_name": None}, "", ""),
    ],
)
def test_prompts(tmp_path, prompts, query, passage):
    folder = write_sentence_encoder(tmp_path / "m", prompts=prompts)
    encoder = load_query_encoder(folder)
    assert isinstance(encoder, SentenceEncoder)
    expected = pooled(hidden_states(folder, query + QUESTIONS[0]), "mean")
    assert close(encoder.encode_queries(QUESTIONS[:1])[0], expected)
    expected = pooled(hidden_states(folder, passage + PASSAGES[1].title + "\n" + PASSAGES[1].text), "mean")
    assert close(encoder.encode_passages(PASSAGES[1:2])[0], expected)


def test_a_passage_without_title_is_its_text(sentence_folder):
    encoder = load_passage_encoder(sentence_folder)
    mean = pooled(hidden_states(sentence_folder, PASSAGES[2].text), "mean")
    assert close(encoder.encode_passages(PASSAGES[2:])[0], mean / mean.norm())


def test_a_long_passage_is_cut_at_max_seq_length(tmp_path):
    folder = write_sentence_encoder(tmp_path / "m", max_seq_length=9)
    encoder = load_passage_encoder(folder)
    text = "paris , rome " * 20
    assert encoder.max_tokens == 9
    expected = pooled(hidden_states(folder, text, max_length=9), "mean")
    assert close(encoder.encode_passages([Passage("1", text)])[0], expected)


@pytest.mark.parametrize(("head", "scale"), [([], 1.0), (["Normalize"], 20.0), (["Normalize", "Dense"], 1.0)])
def test_the_scale_follows_from_normalised_vectors(tmp_path, head, scale):
    folder = write_sentence_encoder(tmp_path / "m", head=head)
    assert load_query_encoder(folder).scale == load_passage_encoder(folder).scale == scale
    assert load_query_encoder(folder, scale=7).scale == 7.0


def test_one_object_is_both_encoders(sentence_folder):
    encoder = load_query_encoder(sentence_folder)
    assert isinstance(encoder, QueryEncoder)
    assert isinstance(encoder, PassageEncoder)
    passage: PassageEncoder = load_passage_encoder(sentence_folder)
    assert encoder.passage_fingerprint == passage.fingerprint
    assert passage.name == "sentence"


def test_a_plain_encoder_is_mean_pooling(tmp_path):
    """Without modules.json; and without the weights of BERT's pooler, which nobody reads."""
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes()), add_pooling_layer=False).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    encoder = load_query_encoder(tmp_path)
    assert encoder.scale == 1.0
    assert close(encoder.encode_queries(QUESTIONS[:1])[0], pooled(hidden_states(tmp_path, QUESTIONS[0]), "mean"))


def test_the_transformer_may_have_a_folder_of_its_own(tmp_path):
    deep = load_query_encoder(write_sentence_encoder(tmp_path / "deep", transformer_path="0_Transformer"))
    flat = load_query_encoder(write_sentence_encoder(tmp_path / "flat"))
    assert torch.equal(deep.encode_queries(QUESTIONS), flat.encode_queries(QUESTIONS))


def test_vectors_are_normalised_in_float32_whatever_the_transformers_dtype(tmp_path):
    folder = write_sentence_encoder(tmp_path / "m", head=["Dense", "Normalize"])
    norms = load_query_encoder(folder, place=Place("cpu", "bfloat16")).encode_queries(QUESTIONS).norm(dim=1)
    # float32 rounds at 6e-8, bfloat16 at 4e-3.
    assert torch.allclose(norms, torch.ones(3), rtol=0, atol=1e-6)


def test_lower_casing_by_the_folders_own_setting(tmp_path):
    folder = write_sentence_encoder(tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    write_json(folder / "tokenizer.json", content)
    small, capital = load_query_encoder(folder).encode_queries(["paris", "PARIS"])
    assert not torch.allclose(small, capital, atol=0.1)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    load_query_encoder(folder).save(tmp_path / "saved")
    for each in (folder, tmp_path / "saved"):
        small, capital = load_query_encoder(each).encode_queries(["paris", "PARIS"])
        assert torch.equal(small, capital)


def test_roberta_reads_two_tokens_fewer_than_it_has_positions(tmp_path):
    torch.manual_seed(0)
    config = RobertaConfig(**(sizes() | {"max_position_embeddings": 14, "vocab_size": len(vocabulary())}))
    RobertaModel(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    encoder = load_query_encoder(tmp_path)
    assert encoder.max_tokens == 12
    assert encoder.encode_queries(["paris " * 10]).isfinite().all()
    with pytest.raises(InputError, match="13 tokens"):
        encoder.encode_queries(["paris " * 11])


def test_gradients_reach_the_whole_model_by_way_of_the_queries(tmp_path):
    encoder = load_query_encoder(write_sentence_encoder(tmp_path / "m", head=["Dense", "Normalize"]))
    assert isinstance(encoder, SentenceEncoder)
    d = encoder.encode_passages(PASSAGES)
    assert not d.requires_grad
    (encoder.encode_queries(QUESTIONS) @ d.T).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.module.parameters())


def test_no_prompt_may_fill_the_whole_window(tmp_path):
    prompts = {"prompts": {"query": "paris " * 30}}
    folder = write_sentence_encoder(tmp_path / "m", prompts=prompts)
    with pytest.raises(ModelError, match="a prompt that fills the 20 tokens"):
        load_query_encoder(folder)


class TestUnsupported:
    @pytest.mark.parametrize("kind", ["CLIPModel", "Module", "os.system"])
    def test_module(self, tmp_path, kind):
        folder = write_sentence_encoder(tmp_path / "m", head=[kind])
        with pytest.raises(ModelError, match=f"a module {kind.rpartition('.')[2]}, which is not supported"):
            load_query_encoder(folder)

    def test_no_modules(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m")
        write_json(folder / "modules.json", [])
        with pytest.raises(ModelError, match="lists no modules"):
            load_query_encoder(folder)

    def test_no_pooling(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m")
        write_json(folder / "modules.json", json.loads((folder / "modules.json").read_text())[:1])
        with pytest.raises(ModelError, match="no vector of a whole text"):
            load_query_encoder(folder)

    @pytest.mark.parametrize("activation", ["os.system", "torch.load", "torch.nn.Bilinear"])
    def test_activation(self, tmp_path, activation):
        folder = write_sentence_encoder(tmp_path / "m", head=["Dense"])
        write_dense(folder / "2_Dense", in_features=16, activation=activation)
        with pytest.raises(ModelError, match=r"the activation os\.system; supported are|does not load as a Dense"):
            load_query_encoder(folder)

    def test_dense_of_another_size(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m", head=["Dense"])
        write_dense(folder / "2_Dense", in_features=8)
        with pytest.raises(ModelError, match="vectors of 8, but they have 16"):
            load_query_encoder(folder)

    def test_pooling(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m")
        write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": "attention"})
        with pytest.raises(ModelError, match="does not load as a Pooling.*'attention'"):
            load_query_encoder(folder)

    @pytest.mark.parametrize("prompts", [{"default_prompt_name": "q"}, {"prompts": ["query"]}, {"prompts": {"q": 1}}])
    def test_prompts(self, tmp_path, prompts):
        folder = write_sentence_encoder(tmp_path / "m", prompts=prompts)
        with pytest.raises(ModelError, match="prompt"):
            load_query_encoder(folder)

    def test_decoder(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m")
        write_json(folder / "config.json", {"model_type": "bart"})
        with pytest.raises(ModelError, match="model_type='bart', needed an encoder"):
            load_query_encoder(folder)


def test_passage_vectors_are_those_of_the_memory_with_a_gradient(sentence_folder):
    encoder = load_passage_encoder(sentence_folder)
    encoder.batch_tokens = 20  # several batches
    vectors = encoder.passage_vectors(PASSAGES)
    assert torch.equal(vectors, encoder.encode_passages(PASSAGES))
    assert vectors.dtype == torch.float32
    vectors[1, 0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.module.parameters())
    with torch.no_grad():
        assert not encoder.passage_vectors(PASSAGES).requires_grad
    assert not encoder.encode_passages(PASSAGES).requires_grad
    # In the module's mode: dropout if it is trained with it, which a memory never sees.
    encoder.module.train()
    assert not torch.allclose(encoder.passage_vectors(PASSAGES), vectors, atol=0.01)
    assert torch.equal(encoder.encode_passages(PASSAGES), vectors)


def test_passage_vectors_have_the_prompt_of_passages(tmp_path):
    prompts = {"prompts": {"query": "query : ", "document": "passage : "}}
    encoder = load_passage_encoder(write_sentence_encoder(tmp_path / "m", prompts=prompts))
    assert torch.equal(encoder.passage_vectors(PASSAGES), encoder.encode_passages(PASSAGES))
    plain = load_passage_encoder(write_sentence_encoder(tmp_path / "plain"))
    assert not torch.allclose(encoder.passage_vectors(PASSAGES), plain.passage_vectors(PASSAGES), atol=0.01)


def test_queries_are_paired_with_another_passage_encoder_and_saved_so(sentence_folder, tmp_path):
    encoder = load_query_encoder(sentence_folder)
    assert isinstance(encoder, SentenceEncoder)
    own = encoder.fingerprint
    encoder.pair_with("other")
    assert (encoder.passage_fingerprint, encoder.fingerprint) == ("other", own)
    encoder.save(tmp_path / "saved")
    assert load_query_encoder(tmp_path / "saved").passage_fingerprint == "other"
