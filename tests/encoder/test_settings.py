"""Prompts, similarity, dimension, segments, stages: as a folder says or as chosen; fingerprints follow the vectors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Model

from latentrag.encoder import SentenceEncoder, load_passage_encoder, load_query_encoder
from latentrag.errors import InputError, ModelError
from latentrag.options import EncoderOptions
from latentrag.types import Passage
from tests.encoder.families import (
    BYTES,
    PASSAGES,
    QUESTIONS,
    stages,
    transformer,
    write_modules,
    write_router,
    write_static,
)
from tests.encoder.tiny import write_dpr, write_json, write_sentence_encoder

gpt2 = transformer("GPT2Model", "GPT2Config", "gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=BYTES)


def configured(folder, **settings):
    write_json(folder / "config_sentence_transformers.json", settings)
    return folder


def queries(folder, **options):
    with torch.no_grad():
        return load_query_encoder(folder, options=EncoderOptions(**options)).encode_queries(QUESTIONS)


class TestSegments:
    def test_models_get_those_that_their_tokenizer_gives(self, tmp_path):
        """GPT-2 takes segment ids for tokens: zeros add the vector of token 0 to every position."""
        stages(gpt2, "mean_tokens", limit=BYTES)(tmp_path)
        model = GPT2Model.from_pretrained(tmp_path).eval()
        (vector,) = load_query_encoder(tmp_path).encode_queries(["paris"])
        vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
        ids = torch.tensor([vocabulary[letter] for letter in "paris"])
        with torch.no_grad():
            expected = model(ids[None]).last_hidden_state[0].mean(0)
            zeros = model(ids[None], token_type_ids=torch.zeros_like(ids)[None]).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, expected, atol=1e-5)
        assert not torch.allclose(vector, zeros, atol=0.05)

    def test_they_reach_models_that_have_them(self, tmp_path, monkeypatch):
        encoder = load_query_encoder(write_sentence_encoder(tmp_path / "m"))
        given: list[object] = []
        forward = encoder.module.forward

        def watched(features, task):
            given.append(features["token_type_ids"].tolist())
            return forward(features, task)

        monkeypatch.setattr(encoder.module, "forward", watched)
        encoder.encode_queries(["paris"])
        assert given == [[[0, 0, 0]]]


class TestSimilarity:
    def test_cosine_without_a_module_that_normalises(self, tmp_path):
        plain = queries(write_sentence_encoder(tmp_path / "plain"))
        folder = configured(write_sentence_encoder(tmp_path / "m"), similarity_fn_name="cosine")
        encoder = load_query_encoder(folder)
        assert torch.allclose(encoder.encode_queries(QUESTIONS), plain / plain.norm(dim=1, keepdim=True), atol=1e-6)
        assert encoder.scale == 20
        encoder.save(tmp_path / "saved")
        assert torch.equal(queries(tmp_path / "saved"), queries(folder))
        assert fingerprint(tmp_path / "saved") == fingerprint(folder) != fingerprint(tmp_path / "plain")

    @pytest.mark.parametrize(("name", "head"), [("dot", []), (None, []), ("cosine", ["Normalize"])])
    def test_where_it_changes_no_vector_it_changes_no_fingerprint(self, tmp_path, name, head):
        before = fingerprint(write_sentence_encoder(tmp_path / "m", head=head))
        assert fingerprint(configured(tmp_path / "m", similarity_fn_name=name)) == before

    @pytest.mark.parametrize("name", ["euclidean", "manhattan", "maxsim"])
    def test_others_are_refused(self, tmp_path, name):
        folder = configured(write_sentence_encoder(tmp_path / "m"), similarity_fn_name=name)
        with pytest.raises(ModelError, match=f"similarity_fn_name='{name}'; needed cosine or dot"):
            load_query_encoder(folder)


class TestDimension:
    @pytest.mark.parametrize("chosen", [True, False])
    def test_the_first_numbers_are_kept(self, tmp_path, chosen):
        folder = write_sentence_encoder(tmp_path / "m", head=["Normalize"])
        whole, options = queries(folder), EncoderOptions(dimension=6)
        if not chosen:
            configured(folder, truncate_dim=6)
            options = EncoderOptions()
        encoder = load_passage_encoder(folder, options=options)
        assert isinstance(encoder, SentenceEncoder)
        cut = encoder.encode_queries(QUESTIONS)
        assert encoder.dimension == 6
        assert torch.allclose(cut, whole[:, :6] / whole[:, :6].norm(dim=1, keepdim=True), atol=1e-6)
        encoder.save(tmp_path / "saved")
        again = load_passage_encoder(tmp_path / "saved")
        assert (again.dimension, again.fingerprint) == (6, encoder.fingerprint)

    def test_of_vectors_that_are_not_normalised(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m")
        assert torch.equal(queries(folder, dimension=6), queries(folder)[:, :6])

    def test_it_is_part_of_the_fingerprint_where_it_cuts(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m", head=["Normalize"])
        assert fingerprint(folder, dimension=16) == fingerprint(folder)
        assert len({fingerprint(folder, dimension=each) for each in (6, 7, 16)}) == 3

    def test_more_than_there_are(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m")
        with pytest.raises(InputError, match="dimension=17 of an encoder of 16 dimensions; needed 1 to 16"):
            load_query_encoder(folder, options=EncoderOptions(dimension=17))


class TestPrompts:
    def test_those_that_are_given_take_the_place_of_the_folders(self, tmp_path):
        """E5's folders have none, and its vectors are poor without them."""
        saved = write_sentence_encoder(
            tmp_path / "saved", prompts={"prompts": {"query": "query : ", "document": "passage : "}}
        )
        folder = write_sentence_encoder(tmp_path / "m", prompts={"prompts": {"query": "title : "}})
        given = EncoderOptions(query_prompt="query : ", passage_prompt="passage : ")
        encoder, expected = load_passage_encoder(folder, options=given), load_passage_encoder(saved)
        assert torch.equal(queries(folder, query_prompt="query : "), queries(saved))
        assert torch.equal(encoder.encode_passages(PASSAGES), expected.encode_passages(PASSAGES))
        assert encoder.fingerprint == expected.fingerprint
        encoder.save(tmp_path / "again")
        assert torch.equal(queries(tmp_path / "again"), queries(saved))
        assert torch.equal(queries(folder, query_prompt=""), queries(write_sentence_encoder(tmp_path / "none")))

    def test_the_passages_prompt_is_part_of_the_fingerprint_and_the_queries_is_not(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m")
        assert fingerprint(folder, passage_prompt="page : ") != fingerprint(folder)
        assert fingerprint(folder, query_prompt="query : ") == fingerprint(folder)

    def test_dpr_has_none(self, tmp_path):
        folder = write_dpr(tmp_path / "q", "DPRQuestionEncoder")
        with pytest.raises(InputError, match="is an encoder of DPR, which has no prompts and no smaller dimensions"):
            load_query_encoder(folder, options=EncoderOptions(query_prompt="query: "))


class TestStages:
    def test_every_stage_learns_and_is_saved(self, tmp_path):
        for write in (write_static, write_router, stages(gpt2, "lasttoken", ["LayerNorm", ("Tanh", 4)], limit=BYTES)):
            folder = tmp_path / str(id(write))
            write(folder)
            encoder = load_query_encoder(folder)
            optimiser = torch.optim.SGD(encoder.module.parameters(), lr=0.1)
            d = load_passage_encoder(folder).encode_passages(PASSAGES)
            (encoder.encode_queries(QUESTIONS) @ d.T).logsumexp(1).sum().backward()
            before = encoder.encode_queries(QUESTIONS).detach()
            optimiser.step()
            after = encoder.encode_queries(QUESTIONS).detach()
            assert not torch.allclose(before, after, atol=1e-4)
            encoder.save(folder / "saved")
            assert torch.allclose(queries(folder / "saved"), after, atol=1e-6)  # products depend on where weights lie

    def test_weights_in_pickles_are_refused(self, tmp_path):
        folder = tmp_path / "m"
        write_router(folder)
        part = folder / "0_Router" / "query_0_StaticEmbedding"
        (part / "model.safetensors").rename(part / "pytorch_model.bin")
        with pytest.raises(ModelError, match="pickled weights only"):
            load_query_encoder(folder)

    def test_a_weight_that_is_missing_behind_the_transformer(self, tmp_path):
        folder = tmp_path / "m"
        stages(transformer("BertModel", "BertConfig"), "mean_tokens", ["LayerNorm"])(folder)
        weights = load_file(folder / "2_LayerNorm" / "model.safetensors")
        save_file({"norm.bias": weights["norm.bias"]}, folder / "2_LayerNorm" / "model.safetensors")
        with pytest.raises(ModelError, match="does not load as a LayerNorm"):
            load_query_encoder(folder)

    def test_a_router_without_a_way_for_passages(self, tmp_path):
        folder = tmp_path / "m"
        write_router(folder)
        path = folder / "0_Router" / "router_config.json"
        content = json.loads(path.read_text())
        content["structure"] = {"query": content["structure"]["query"]}
        content["parameters"] = {"default_route": None, "allow_empty_key": False}
        write_json(path, content)
        with pytest.raises(ModelError, match="Router has routes query; needed one for document"):
            load_query_encoder(folder)

    def test_code_that_a_folder_brings_along_is_not_run(self, tmp_path):
        folder = write_sentence_encoder(tmp_path / "m")
        (folder / "modeling_evil.py").write_text("raise SystemExit('ran')\nclass Pooling: ...\n")
        write_modules(folder, [("Transformer", ""), ("Pooling", "1_Pooling")])
        listed = json.loads((folder / "modules.json").read_text())
        listed[1]["type"] = "modeling_evil.Pooling"
        write_json(folder / "modules.json", listed)
        assert queries(folder).shape == (3, 16)
        listed[1]["type"] = "modeling_evil.Evil"
        write_json(folder / "modules.json", listed)
        with pytest.raises(ModelError, match="a module Evil, which is not supported"):
            load_query_encoder(folder)


def fingerprint(folder, **options):
    return load_passage_encoder(folder, options=EncoderOptions(**options)).fingerprint


def test_fingerprints_of_memories_that_were_there_before(tmp_path):
    """As they were before sentence-transformers' modules were used, of weights that no random generator makes."""
    folder = write_sentence_encoder(tmp_path / "m", head=["Dense", "Normalize"], prompts={"prompts": {"query": "q : "}})
    for path in (folder / "model.safetensors", folder / "2_Dense" / "model.safetensors"):
        weights = {
            name: (torch.arange(weight.numel(), dtype=torch.float32).remainder(17) / 32 - 0.25).reshape(weight.shape)
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})
    encoder = load_passage_encoder(folder)
    assert encoder.fingerprint == "ba8561a93466a1c5cbf4fa3011226880"
    (vector,) = encoder.encode_passages([Passage("1", "paris is the capital of france .", "paris")])
    assert torch.allclose(vector, torch.tensor(VECTOR), atol=1e-6)


VECTOR = [0.8280618, 0.1879171, 0.0479635, -0.4671493, -0.2418095]
