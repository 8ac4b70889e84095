"""Folders that are not whole, what saving keeps, and what loading must not do."""

import json
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertModel, DPRQuestionEncoder

from latentrag.encoder import SentenceEncoder, load_passage_encoder, load_query_encoder
from latentrag.errors import ModelError
from latentrag.place import Place
from latentrag.types import Passage
from tests.encoder.tiny import write_dpr, write_json, write_sentence_encoder

QUESTIONS = ["who wrote hamlet ?", "paris"]
PASSAGES = [Passage("1", "paris is the capital of france .", "paris"), Passage("2", "a play")]


@pytest.fixture(params=["sentence_folder", "query_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


def edit(path, **change):
    write_json(path, json.loads(path.read_text()) | change)


def drop(folder, ending):
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.endswith(ending)}
    assert len(kept) == len(weights) - 1
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def reshape(folder):
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if key.endswith("layer.0.output.dense.bias"))
    save_file(weights | {key: torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(path, *, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


FAULTS = {
    "no configuration": (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    "an adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "is a PEFT adapter, no model; name its base model",
    ),
    "broken configuration": (lambda f: truncate(f / "config.json", keep=0.5), r"config\.json cannot be read as JSON"),
    "a list for a configuration": (lambda f: write_json(f / "config.json", []), "holds a list, needed an object"),
    "unknown architecture": (lambda f: edit(f / "config.json", model_type="x", auto_map={}), "has model_type='x'"),
    "impossible configuration": (lambda f: edit(f / "config.json", hidden_size="wide"), "config.json is not usable"),
    "odd configuration": (lambda f: edit(f / "config.json", num_attention_heads=3), "does not load as"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no weights; needed model\.safetensors"),
    "pickled weights": (pickle_only, r"pickled weights only \(pytorch_model\.bin\)"),
    "truncated weights": (lambda f: truncate(f / "model.safetensors", keep=0.9), "truncated or corrupt"),
    "truncated header": (lambda f: truncate(f / "model.safetensors", keep=0.01), "truncated or corrupt"),
    "empty weights": (lambda f: truncate(f / "model.safetensors", keep=0), "truncated or corrupt"),
    "a missing weight": (lambda f: drop(f, "layer.1.output.dense.bias"), r"lacks 1 weights .*layer\.1\.output\.dense"),
    "another shape": (reshape, "in another shape"),
    "too few layers": (lambda f: edit(f / "config.json", num_hidden_layers=3), r"lacks 16 weights"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    "broken tokenizer": (lambda f: truncate(f / "tokenizer.json", keep=0.5), r"tokenizer\.json is no tokenizer"),
    "broken tokenizer settings": (
        lambda f: write_json(f / "tokenizer_config.json", 5),
        "holds a int, needed an object",
    ),
    "broken settings of ours": (lambda f: write_json(f / "latentrag_encoder.json", {}), "has no usable kind"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_one_clear_line(folder, fault, capfd):
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(ModelError, match=message) as raised:
        load_query_encoder(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "Loading" not in capfd.readouterr().err


def test_a_tokenizer_of_another_model(tmp_path):
    folder = write_dpr(tmp_path / "q", "DPRQuestionEncoder")
    cased = write_dpr(tmp_path / "cased", "DPRQuestionEncoder", cased=True)
    (folder / "tokenizer.json").write_bytes((cased / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match=r"has a tokenizer of .* ids, but the model has"):
        load_query_encoder(folder)


def test_special_tokens_beyond_the_models_vectors_are_left_out(folder):
    """Gemma's tokenizers have one for images that its models for texts have no vector for."""
    before = load_query_encoder(folder).encode_queries(QUESTIONS)
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": len(content["model"]["vocab"]), "content": "<image>", **flags}]
    write_json(folder / "tokenizer.json", content)
    encoder = load_query_encoder(folder)
    assert torch.equal(encoder.encode_queries(QUESTIONS), before)
    assert torch.allclose(encoder.encode_queries(["paris <image>"]), encoder.encode_queries(["paris"]), atol=1e-6)


def test_a_vocabulary_that_is_not_berts(query_folder):
    (query_folder / "tokenizer.json").unlink()
    (query_folder / "vocab.txt").write_text("<s>\n</s>\n<unk>\n")
    with pytest.raises(ModelError, match="not a vocabulary of BERT's kind"):
        load_query_encoder(query_folder)


def test_paths_that_are_no_folder(tmp_path, query_folder):
    with pytest.raises(ModelError, match="does not exist"):
        load_query_encoder(tmp_path / "absent")
    with pytest.raises(ModelError, match="is a file; name the folder"):
        load_query_encoder(query_folder / "model.safetensors")


def test_neither_a_folder_nor_a_hub_id(tmp_path, no_network):
    with pytest.raises(ModelError, match=r"^'some/model' is neither a folder nor a hub id that can be reached"):
        load_query_encoder("some/model")
    with pytest.raises(ModelError, match="is neither a folder nor a hub id") as raised:
        load_passage_encoder(str(tmp_path / "absent"))
    assert "\n" not in str(raised.value)


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to reach another machine fails at once, and is noted."""
    attempts = []

    def refuse(*address, **options):
        attempts.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def test_a_folder_never_touches_the_network_and_loads_in_silence(folder, passage_folder, no_network, capfd):
    capfd.readouterr()
    load_query_encoder(str(folder)).encode_queries(QUESTIONS)
    load_passage_encoder(passage_folder).encode_passages(PASSAGES)
    assert no_network == []
    assert capfd.readouterr() == ("", "")


def test_shards(query_folder):
    before = load_query_encoder(query_folder).encode_queries(QUESTIONS)
    DPRQuestionEncoder.from_pretrained(query_folder).save_pretrained(query_folder, max_shard_size="8KB")
    (query_folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(query_folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load_query_encoder(query_folder).encode_queries(QUESTIONS), before)
    shards[0].unlink()
    with pytest.raises(ModelError, match="is missing, truncated or corrupt"):
        load_query_encoder(query_folder)


class TestSaving:
    def test_queries_are_the_same_to_the_bit(self, folder, tmp_path):
        encoder = load_query_encoder(folder, scale=3.5, name="mine", passage_fingerprint="abc")
        encoder.save(tmp_path / "saved")
        again = load_query_encoder(tmp_path / "saved")
        assert torch.equal(encoder.encode_queries(QUESTIONS), again.encode_queries(QUESTIONS))
        assert (again.name, again.scale, again.passage_fingerprint) == ("mine", 3.5, "abc")
        assert again.max_tokens == encoder.max_tokens
        assert load_query_encoder(tmp_path / "saved", scale=2.0, name="yours").scale == 2.0

    @pytest.mark.parametrize("head", [[], ["Normalize"], ["Dense", "Normalize"]])
    def test_passages_are_the_same_to_the_bit(self, tmp_path, head):
        prompts = {"prompts": {"query": "query : ", "document": "page : "}}
        source = write_sentence_encoder(
            tmp_path / "m", modes=["mean", "max"], include_prompt=False, head=head, prompts=prompts
        )
        encoder = load_passage_encoder(source)
        encoder.save(tmp_path / "saved")
        again = load_passage_encoder(tmp_path / "saved")
        assert isinstance(encoder, SentenceEncoder)
        assert isinstance(again, SentenceEncoder)
        assert torch.equal(encoder.encode_passages(PASSAGES), again.encode_passages(PASSAGES))
        assert torch.equal(encoder.encode_queries(QUESTIONS), again.encode_queries(QUESTIONS))
        assert again.fingerprint == encoder.fingerprint
        assert again.scale == encoder.scale

    def test_dpr_passages_are_the_same_to_the_bit(self, passage_folder, tmp_path):
        encoder = load_passage_encoder(passage_folder, scale=0.5)
        encoder.save(tmp_path / "saved")
        again = load_passage_encoder(tmp_path / "saved")
        assert torch.equal(encoder.encode_passages(PASSAGES), again.encode_passages(PASSAGES))
        assert again.scale == 0.5

    def test_a_plain_encoder_stays_what_it_was(self, tmp_path):
        source = write_sentence_encoder(tmp_path / "m")
        (source / "modules.json").unlink()
        encoder = load_query_encoder(source)
        encoder.save(tmp_path / "saved")
        again = load_query_encoder(tmp_path / "saved")
        assert torch.equal(encoder.encode_queries(QUESTIONS), again.encode_queries(QUESTIONS))

    @pytest.mark.parametrize("number_format", ["bfloat16", "float16"])
    def test_the_dtype_is_kept(self, folder, tmp_path, number_format):
        dtype = getattr(torch, number_format)
        encoder = load_query_encoder(folder, place=Place("cpu", number_format))
        assert {p.dtype for p in encoder.module.parameters()} == {dtype}
        encoder.save(tmp_path / "saved")
        again = load_query_encoder(tmp_path / "saved")
        vectors = again.encode_queries(QUESTIONS)
        assert vectors.dtype == torch.float32
        assert torch.equal(vectors, encoder.encode_queries(QUESTIONS))
        widened = load_query_encoder(tmp_path / "saved", place=Place("cpu", "float32"))
        assert {p.dtype for p in widened.module.parameters()} == {torch.float32}

    def test_half_precision_files_are_computed_in_float32(self, query_folder):
        weights = {key: value.half() for key, value in load_file(query_folder / "model.safetensors").items()}
        save_file(weights, query_folder / "model.safetensors", metadata={"format": "pt"})
        assert {p.dtype for p in load_query_encoder(query_folder).module.parameters()} == {torch.float32}

    def test_training_leaves_the_files_alone_until_they_are_saved_over(self, folder):
        """Loaded weights are mapped from the file: neither may a step write to it nor saving destroy them."""
        on_disk = (folder / "model.safetensors").read_bytes()
        encoder = load_query_encoder(folder)
        with torch.no_grad():
            for p in encoder.module.parameters():
                p.add_(0.125)
        assert (folder / "model.safetensors").read_bytes() == on_disk
        trained = encoder.encode_queries(QUESTIONS)
        encoder.save(folder)
        assert (folder / "model.safetensors").read_bytes() != on_disk
        assert torch.equal(load_query_encoder(folder).encode_queries(QUESTIONS), trained)
        assert torch.equal(encoder.encode_queries(QUESTIONS), trained)
        assert not list(folder.glob(".saving-*"))

    def test_other_libraries_read_what_was_saved(self, query_folder, tmp_path):
        source = write_sentence_encoder(tmp_path / "source", head=["Dense", "Normalize"])
        load_query_encoder(source).save(tmp_path / "s")
        assert isinstance(AutoModel.from_pretrained(tmp_path / "s"), BertModel)
        stages = [stage["type"].rpartition(".")[2] for stage in json.loads((tmp_path / "s/modules.json").read_text())]
        assert stages == ["Transformer", "Pooling", "Dense", "Normalize"]
        dense = [json.loads((at / "2_Dense" / "config.json").read_text()) for at in (source, tmp_path / "s")]
        assert dense[0].items() <= dense[1].items()
        load_query_encoder(query_folder).save(tmp_path / "q")
        keys = load_file(tmp_path / "q" / "model.safetensors")
        assert all(key.startswith("question_encoder.bert_model.") for key in keys)
        tokenizer = json.loads((tmp_path / "q" / "tokenizer.json").read_text())
        assert tokenizer["truncation"] is None
        assert tokenizer["padding"] is None

    def test_the_other_role_is_refused(self, query_folder, passage_folder, tmp_path):
        load_query_encoder(query_folder).save(tmp_path / "q")
        load_passage_encoder(passage_folder).save(tmp_path / "p")
        with pytest.raises(ModelError, match="is of a query encoder, needed a passage encoder"):
            load_passage_encoder(tmp_path / "q")
        with pytest.raises(ModelError, match="is of a passage encoder, needed a query encoder"):
            load_query_encoder(tmp_path / "p")

    def test_saving_dpr_over_a_sentence_encoder(self, sentence_folder, query_folder):
        encoder = load_query_encoder(query_folder)
        encoder.save(sentence_folder)
        again = load_query_encoder(sentence_folder)
        assert torch.equal(again.encode_queries(QUESTIONS), encoder.encode_queries(QUESTIONS))


LOAD_BOTH = """
import sys
import latentrag.encoder, latentrag.errors
assert not {"transformers", "tokenizers"} & set(sys.modules)
latentrag.encoder.load_query_encoder(sys.argv[1])
try:
    latentrag.encoder.load_query_encoder(sys.argv[2])
except latentrag.errors.ModelError:
    sys.exit(3)
"""


def test_a_fresh_process_imports_little_and_loads_in_silence(tmp_path):
    """transformers would report on stderr what the second folder lacks, and that it has weights to spare."""
    whole, broken = (write_dpr(tmp_path / name, "DPRQuestionEncoder") for name in ("whole", "broken"))
    drop(broken, "layer.1.output.dense.bias")
    edit(broken / "config.json", num_hidden_layers=3)
    command = [sys.executable, "-c", LOAD_BOTH, str(whole), str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 3)
