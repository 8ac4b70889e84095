"""Models and memories from folders, put together, saved and loaded again."""

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import latentrag
from latentrag.assemble import (
    ModelSpec,
    generator_for_training,
    load,
    load_passage_encoder,
    open_memory,
    save,
    with_parts,
)
from latentrag.errors import EncoderMismatchError, InputError, MemoryStoreError, ModelError
from latentrag.generator import PromptTemplate, Seq2SeqGenerator
from latentrag.generator.chat import ChatTemplate
from latentrag.generator.passages import PassageCache
from latentrag.generator.tuning import Lora, split_weights
from latentrag.memory import Memory
from latentrag.rag import Rag
from latentrag.retriever import BM25Retriever, DenseRetriever
from latentrag.types import Passage, singles
from tests import tiny
from tests.encoder.tiny import write_dpr
from tests.test_transformers_rag import checkpoint

PASSAGES = [
    Passage("paris", "paris is the capital of france", "paris", "geo", 0, 30),
    Passage("rome", "rome is a city in italy", "rome"),
    Passage("hamlet", "hamlet is a play", "hamlet"),
    Passage("seine", "the seine is a river in france", "seine"),
]
QUESTION = "what is the capital of france ?"


@pytest.fixture
def parts(pair) -> tuple[Path, Path]:
    """A sentence encoder and a causal generator."""
    return pair


@pytest.fixture
def memory(filled) -> Path:
    return filled


def test_a_pair_answers(parts, memory) -> None:
    rag = latentrag.load(parts, memory=memory, k=3)
    answer = rag.answer("what is the capital of france ?", max_tokens=5)
    assert len(answer.sources) == 3
    assert answer.memory_version == 2
    assert {s.passage.id for s in answer.sources} <= {z.id for z in PASSAGES}
    scores = rag.retriever.retrieve(["what is the capital of france ?"], 3).logits
    priors = torch.softmax(scores[0], dim=0).tolist()
    assert [s.prior for s in answer.sources] == pytest.approx(priors, abs=1e-6)


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_save_and_load_give_the_same_answers(variant, parts, memory, tmp_path) -> None:
    rag = load(ModelSpec(*parts), memory=memory, variant=variant, k=2)
    rag.defaults = latentrag.DecodingOptions(num_beams=2, max_tokens=6, stop=("zzz",))
    save(rag, tmp_path / "saved")
    again = load(tmp_path / "saved", memory=memory)
    assert (again.variant, again.k, again.options()) == (variant, 2, rag.defaults)
    question = "who wrote hamlet ?"
    assert again.answer(question) == rag.answer(question)
    assert not [path for path in (tmp_path / "saved").rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]
    assert load_passage_encoder(tmp_path / "saved").fingerprint == load_passage_encoder(parts[0]).fingerprint


def test_saving_over_a_model_replaces_it_and_over_anything_else_is_refused(parts, memory, tmp_path) -> None:
    rag = load(parts, memory=memory)
    save(rag, tmp_path / "saved")
    rag.k = 3
    save(rag, tmp_path / "saved")
    assert load(tmp_path / "saved", memory=memory).k == 3
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="no model that latentrag saved"):
        save(rag, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize("fails", ["the generator is written", "the folder takes its place"])
def test_a_failed_save_leaves_the_old_model_and_nothing_else(parts, memory, tmp_path, monkeypatch, fails) -> None:
    rag = load(parts, memory=memory)
    save(rag, tmp_path / "saved")
    before = {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    others = set(tmp_path.iterdir())
    rename = Path.rename

    def full(*_args: object) -> NoReturn:
        raise OSError("no space left on device")

    def renamed(self: Path, target: Path) -> Path:
        return full() if self.name.endswith(".new") else rename(self, target)

    if fails == "the generator is written":
        monkeypatch.setattr(type(rag.generator), "save", full)
    else:
        monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(InputError, match="no space left"):
        save(rag, tmp_path / "saved")
    assert {path: path.read_bytes() for path in before} == before
    assert set(tmp_path.iterdir()) == others


@pytest.mark.parametrize("num_bytes", [0, 1_000, 20_000])
def test_a_full_disk_costs_one_line(parts, memory, tmp_path, num_bytes) -> None:
    """No file may grow beyond so many bytes: safetensors has an error of its own for that."""
    resource = pytest.importorskip("resource")
    rag = load(parts, memory=memory)
    before, others = resource.getrlimit(resource.RLIMIT_FSIZE), set(tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        with pytest.raises(InputError, match=r"saved cannot be written \("):
            save(rag, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert set(tmp_path.iterdir()) == others


@pytest.mark.parametrize("variant", ["Sequence", "Token"])
def test_the_layout_of_facebook_rag_loads(variant, tmp_path) -> None:
    theirs, _ = checkpoint(tmp_path / "rag", 0, variant=variant)
    torch.manual_seed(0)
    encoder = load_passage_encoder(write_dpr(tmp_path / "ctx", "DPRContextEncoder", seed=1))
    memory = Memory.create(tmp_path / "m.lance", encoder).add(PASSAGES, encoder)
    with pytest.warns(UserWarning, match="cannot verify"):
        rag = load(tmp_path / "rag", memory=memory)
    assert (rag.variant, rag.k) == (variant.lower(), 3)
    question = "what is the capital"
    assert isinstance(rag.generator, Seq2SeqGenerator)
    assert isinstance(rag.retriever, DenseRetriever)
    ids = rag.generator.tokenizer(question, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = theirs.question_encoder(ids, attention_mask=torch.ones_like(ids))[0]
        q = rag.retriever.query_encoder.encode_queries([question])
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-5)
    assert len(rag.answer(question, max_tokens=4).sources) == 3
    with pytest.raises(ModelError, match="holds no passage encoder"):
        load_passage_encoder(tmp_path / "rag")
    save(rag, tmp_path / "saved", passage_encoder=encoder)
    with pytest.warns(UserWarning, match="cannot verify"):
        again = load(tmp_path / "saved", memory=memory)
    assert again.answer(question, max_tokens=4) == rag.answer(question, max_tokens=4)
    assert load_passage_encoder(tmp_path / "saved").fingerprint == encoder.fingerprint


def test_a_pair_of_encoders_is_checked_against_the_memory(parts, tmp_path) -> None:
    query = write_dpr(tmp_path / "q", "DPRQuestionEncoder")
    right = write_dpr(tmp_path / "right", "DPRContextEncoder", seed=1)
    wrong = write_dpr(tmp_path / "wrong", "DPRContextEncoder", seed=2)
    encoder = load_passage_encoder(right)
    memory = Memory.create(tmp_path / "m.lance", encoder).add(PASSAGES, encoder)
    assert load(ModelSpec(query, parts[1], right), memory=memory).answer("what is paris", k=2, max_tokens=3).sources
    with pytest.raises(EncoderMismatchError):
        load(ModelSpec(query, parts[1], wrong), memory=memory)
    with pytest.raises(EncoderMismatchError):
        load(parts, memory=memory)


def test_versions(parts, memory) -> None:
    Memory.open(memory).delete(["paris"])
    assert load(parts, memory=memory).answer("what is paris", k=3, max_tokens=3).memory_version == 3
    old = load(parts, memory=memory, version=2).answer("what is paris", k=4, max_tokens=3)
    assert old.memory_version == 2
    assert "paris" in {s.passage.id for s in old.sources}
    assert open_memory(Memory.open(memory), version=2).version == 2


def test_dtypes(parts, memory) -> None:
    assert tiny.causal_of(load(parts, memory=memory)).model.dtype == torch.float32
    assert tiny.causal_of(load(parts, memory=memory, dtype="bfloat16")).model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype='int4' is unknown; needed auto, .*float16 or int8"):
        load(parts, memory=memory, dtype="int4")


def cache_of(rag: Rag) -> PassageCache:
    """What its generator keeps of passages."""
    cache = tiny.causal_of(rag).passage_cache
    assert cache is not None
    return cache


def test_what_was_read_of_passages_outlives_the_process(parts, memory, tmp_path) -> None:
    def opened(**options: Any) -> tuple[Rag, PassageCache]:
        rag = load(parts, memory=memory, passage_cache_folder=tmp_path / "kv", **options)
        return rag, cache_of(rag)

    (first, cold), (again, warm), (other, foreign) = opened(), opened(), opened(dtype="bfloat16")
    expected = first.answer(QUESTION, k=2, max_tokens=3)
    assert again.answer(QUESTION, k=2, max_tokens=3) == expected
    other.answer(QUESTION, k=2, max_tokens=3)
    assert [cache.num_misses for cache in (cold, warm, foreign)] == [2, 0, 2]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be a folder"):
        load(parts, memory=memory, passage_cache_folder=tmp_path / "file")
    with pytest.raises(InputError, match="eight bits is not kept on disk"):
        opened(dtype="int8")


def test_what_is_kept_on_disk_needs_no_ram(parts, memory, tmp_path) -> None:
    misses = []
    for _ in range(2):
        rag = load(parts, memory=memory, passage_cache_bytes=0, passage_cache_folder=tmp_path / "kv")
        rag.answer(QUESTION, k=2, max_tokens=3)
        misses.append(cache_of(rag).num_misses)
        assert cache_of(rag).num_bytes == 0
    assert misses == [2, 0]
    assert tiny.causal_of(load(parts, memory=memory, passage_cache_bytes=0)).passage_cache is None


@pytest.mark.parametrize(("scope", "misses"), [("question", 0), ("all", 2)])
def test_passages_read_by_an_adapter_are_not_those_of_the_model(parts, memory, tmp_path, scope, misses) -> None:
    rag = load(parts, memory=memory, passage_cache_folder=tmp_path / "kv")
    rag.answer(QUESTION, k=2, max_tokens=3)
    tuned = generator_for_training(tiny.causal_of(rag), lora=Lora(rank=2, scope=scope))
    with torch.no_grad():
        for weights in split_weights(tuned.model.state_dict())[1].values():
            weights.fill_(0.01)
    frozen = generator_for_training(
        tuned, lora=None, frozen=True, keep_preamble=True, passage_cache_folder=tmp_path / "kv"
    )
    with_parts(rag, rag.retriever, frozen).answer(QUESTION, k=2, max_tokens=3)
    assert frozen.passage_cache is not None
    assert frozen.passage_cache.num_misses == misses


@pytest.mark.parametrize("keep_preamble", [True, False])
def test_a_tuned_model_handed_on_reads_passages_as_it_was_trained(parts, memory, tmp_path, keep_preamble) -> None:
    """Its adapter is for questions: what it reads of passages is that of the model without it, and is kept as such."""
    rag = load(parts, memory=memory, passage_cache_folder=tmp_path / "kv")
    tuned = generator_for_training(tiny.causal_of(rag), lora=Lora(rank=2), keep_preamble=True)
    with torch.no_grad():
        for weights in split_weights(tuned.model.state_dict())[1].values():
            weights.fill_(0.05)

    def log_p(generator) -> torch.Tensor:
        with torch.no_grad():
            prepared = generator.prepare([QUESTION], singles([PASSAGES[:2]]))
            return generator.log_p_theta(prepared, generator.targets(["paris"]))

    expected = log_p(tuned)
    handed_on = generator_for_training(
        tuned, lora=tuned.lora, keep_preamble=keep_preamble, passage_cache_folder=tmp_path / "kv"
    )
    torch.testing.assert_close(log_p(handed_on), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_p(tuned), expected, rtol=0, atol=1e-5)
    cache_of(rag).forget()
    own = generator_for_training(
        tuned, lora=None, frozen=True, keep_preamble=True, passage_cache_folder=tmp_path / "kv"
    )
    torch.testing.assert_close(log_p(own), expected, rtol=0, atol=1e-5)
    assert own.passage_cache is not None
    assert own.passage_cache.num_misses == 0


def test_another_adapter_than_the_model_has_is_refused(parts, memory) -> None:
    tuned = generator_for_training(tiny.causal_of(load(parts, memory=memory)), lora=Lora(rank=2))
    with pytest.raises(InputError, match=r"has an adapter .*rank=2.* already"):
        generator_for_training(tuned, lora=Lora(rank=4))


def test_a_new_adapter_seeds_no_generator_of_random_numbers(parts, memory, monkeypatch) -> None:
    """torch.manual_seed would seed those of accelerators too."""
    generator = tiny.causal_of(load(parts, memory=memory))
    monkeypatch.setattr(torch, "manual_seed", None)
    before = torch.get_rng_state()
    first = generator_for_training(generator, lora=Lora(rank=2), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    again = generator_for_training(tiny.causal_of(load(parts, memory=memory)), lora=Lora(rank=2), seed=3)
    for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def damaged(folder: Path, damage: str) -> None:
    settings = folder / "latentrag.json"
    content = json.loads(settings.read_text())
    if damage == "generator gone":
        shutil.rmtree(folder / "generator")
    elif damage == "weights truncated":
        weights = folder / "query_encoder" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "not JSON":
        settings.write_text("{")
    elif damage == "newer format":
        settings.write_text(json.dumps({**content, "format": 3}))
    elif damage == "no variant":
        settings.write_text(json.dumps({**content, "prior": {**content["prior"], "variant": "both"}}))
    elif damage == "no prior":
        settings.write_text(json.dumps({**content, "prior": None}))
    else:
        settings.write_text(json.dumps({**content, "decoding": {"num_beams": 0}}))


@pytest.mark.parametrize(
    "damage",
    ["generator gone", "weights truncated", "not JSON", "newer format", "no variant", "no prior", "bad option"],
)
def test_damaged_models_are_refused_in_one_line(damage, parts, memory, tmp_path) -> None:
    save(load(parts, memory=memory), tmp_path / "saved")
    damaged(tmp_path / "saved", damage)
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "saved", memory=memory)
    assert "\n" not in str(caught.value)


def test_things_that_are_no_model_or_memory(parts, memory, tmp_path, home) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="needed a model folder"):
        load(tmp_path / "empty", memory=memory)
    with pytest.raises(ModelError, match="is one model"):
        load(parts[0], memory=memory)
    with pytest.raises(ModelError, match="latentrag demo"):
        load("demo", memory=memory)
    with pytest.raises(MemoryStoreError, match="latentrag demo"):
        load(parts, memory="demo")
    with pytest.raises(ModelError):
        load("no/such-model", memory=memory)
    with pytest.raises(MemoryStoreError):
        load(parts, memory=tmp_path / "none.lance")


def test_bm25_answers_from_the_words_of_its_passages(parts, memory) -> None:
    rag = load(parts, memory=memory, retriever="bm25", k=2)
    answer = rag.answer(QUESTION, max_tokens=5)
    assert [source.passage.id for source in answer.sources] == ["paris", "seine"]
    scores = BM25Retriever(Memory.open(memory)).retrieve([QUESTION], 2).logits[0]
    # The softmax of two float32 numbers, computed twice in the same way.
    assert [s.prior for s in answer.sources] == pytest.approx(torch.softmax(scores, dim=0).tolist(), abs=1e-6)
    assert answer.memory_version == 2


def test_bm25_opens_no_encoder(parts, memory, tmp_path) -> None:
    rag = load(ModelSpec(tmp_path / "none", parts[1], tmp_path / "none"), memory=memory, retriever="bm25")
    assert isinstance(rag.retriever, BM25Retriever)
    save(load(parts, memory=memory), tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "query_encoder")
    assert load(tmp_path / "saved", memory=memory, retriever="bm25").answer(QUESTION, k=2, max_tokens=2).sources


def test_a_bm25_model_saved_and_loaded_gives_the_same_answers(parts, memory, tmp_path) -> None:
    rag = load(parts, memory=memory, retriever="bm25", variant="token", k=3)
    assert isinstance(rag.retriever, BM25Retriever)
    rag.retriever.scale = 0.5
    save(rag, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["README.md", "generator", "latentrag.json"]
    prior = json.loads((tmp_path / "saved" / "latentrag.json").read_text())["prior"]
    assert prior == {"variant": "token", "k": 3, "retriever": "bm25", "settings": {"scale": 0.5}}
    again = load(tmp_path / "saved", memory=memory)
    assert isinstance(again.retriever, BM25Retriever)
    assert again.answer(QUESTION, max_tokens=4) == rag.answer(QUESTION, max_tokens=4)
    with pytest.raises(ModelError, match="was saved with bm25 and has no query_encoder"):
        load(tmp_path / "saved", memory=memory, retriever="dense")
    with pytest.raises(ModelError, match="holds no encoder"):
        load_passage_encoder(tmp_path / "saved")
    encoder = load_passage_encoder(parts[0])
    save(again, tmp_path / "saved", passage_encoder=encoder)
    assert load_passage_encoder(tmp_path / "saved").fingerprint == encoder.fingerprint


def test_a_dense_model_stays_dense_unless_asked(parts, memory, tmp_path) -> None:
    save(load(parts, memory=memory), tmp_path / "saved")
    assert isinstance(load(tmp_path / "saved", memory=memory).retriever, DenseRetriever)
    # As models were saved before there was a choice.
    content = {"format": 1, "variant": "sequence", "k": 5, "decoding": {}}
    (tmp_path / "saved" / "latentrag.json").write_text(json.dumps(content))
    assert isinstance(load(tmp_path / "saved", memory=memory).retriever, DenseRetriever)


def test_bm25_with_the_layout_of_facebook_rag(tmp_path) -> None:
    checkpoint(tmp_path / "rag", 0, variant="Token")
    encoder = load_passage_encoder(write_dpr(tmp_path / "ctx", "DPRContextEncoder", seed=1))
    filled = Memory.create(tmp_path / "m.lance", encoder).add(PASSAGES, encoder)
    rag = load(tmp_path / "rag", memory=filled, retriever="bm25")  # and no warning about an unknown encoder
    assert (rag.variant, rag.k) == ("token", 3)
    assert rag.answer("what is the capital", max_tokens=3).sources[0].passage.id == "paris"


@pytest.mark.parametrize(
    "change",
    [
        {"retriever": "sparse"},
        {"settings": {"scale": 0}},
        {"settings": {"scale": "1"}},
        {"settings": {"weights": {"bm25": 0.3}}},
    ],
)
def test_settings_of_the_retriever_that_are_unknown_or_damaged_are_refused(change, parts, memory, tmp_path) -> None:
    save(load(parts, memory=memory, retriever="bm25"), tmp_path / "saved")
    file = tmp_path / "saved" / "latentrag.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "prior": {**content["prior"], **change}}))
    with pytest.raises(ModelError, match="section 'prior' has no usable retriever") as caught:
        load(tmp_path / "saved", memory=memory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moods": {"bias": 0.5}}, "has a section 'moods' of a newer version of latentrag; update"),
        ({"prior": {"retriever": "dense", "moods": [0.5]}}, r"has prior\.moods of a newer version"),
    ],
)
def test_what_a_newer_version_saved_is_refused_by_name(change, message, parts, memory, tmp_path) -> None:
    save(load(parts, memory=memory), tmp_path / "saved")
    file = tmp_path / "saved" / "latentrag.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path / "saved", memory=memory)
    assert "\n" not in str(caught.value)


def test_the_prompt_and_the_adapter_of_a_model_beat_those_in_its_generators_folder(parts, memory, tmp_path) -> None:
    rag = load(parts, memory=memory)
    tuned = generator_for_training(tiny.causal_of(rag), lora=Lora(rank=2, scope="question"))
    save(with_parts(rag, rag.retriever, tuned), tmp_path / "saved")
    file = tmp_path / "saved" / "latentrag.json"
    content = json.loads(file.read_text())
    assert content["adapter"]["rank"] == 2
    assert tiny.causal_of(load(tmp_path / "saved", memory=memory)).lora == tuned.lora
    content["template"]["preamble"] = "one two three ."
    file.write_text(json.dumps(content))
    assert tiny.causal_of(load(tmp_path / "saved", memory=memory)).template.preamble == "one two three ."


@pytest.fixture
def instructed(parts) -> tuple[Path, Path]:
    """Parts of which the generator has a chat template."""
    generator = parts[1]
    chat = "{% for m in messages %}{{ '<s>' + m.content + '</s>' }}{% endfor %}"
    (generator / "chat_template.jinja").write_text(chat)
    return parts


def test_an_instruction_is_saved_with_its_model(instructed, memory, tmp_path) -> None:
    own = tiny.causal_of(load(instructed, memory=memory)).template
    assert isinstance(own, ChatTemplate)
    assert own.preamble.startswith("<s>Answer the question in as few words")
    rag = load(instructed, memory=memory, k=2, instruction="one two three !")
    save(rag, tmp_path / "saved")
    section = json.loads((tmp_path / "saved" / "latentrag.json").read_text())["template"]
    assert (section["kind"], section["instruction"]) == ("chat", "one two three !")
    again = load(tmp_path / "saved", memory=memory)
    assert tiny.causal_of(again).template.preamble == "<s>one two three !\n\n"
    assert again.answer(QUESTION) == rag.answer(QUESTION)
    other = load(tmp_path / "saved", memory=memory, instruction="four five .")
    assert tiny.causal_of(other).template.preamble == "<s>four five .\n\n"


def test_a_prompt_from_a_file_is_saved_with_its_model(instructed, memory, tmp_path) -> None:
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps({"preamble": "the moon is red\n"}))
    rag = load(instructed, memory=memory, k=2, template=file)
    save(rag, tmp_path / "saved")
    file.unlink()
    again = load(tmp_path / "saved", memory=memory)
    assert tiny.causal_of(again).template == PromptTemplate(preamble="the moon is red\n")
    assert again.answer(QUESTION) == rag.answer(QUESTION)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"instruction": "one", "template": "file"}, InputError, "both instruction and template"),
        ({"instruction": "one"}, ModelError, "has no chat template, which an instruction needs; give a prompt"),
        ({"template": "nowhere.json"}, InputError, "nowhere.json is no file"),
        ({"template": "broken.json"}, ModelError, "the generator's settings cannot be used"),
    ],
)
def test_prompts_that_cannot_be(given, error, message, parts, memory, tmp_path) -> None:
    (tmp_path / "broken.json").write_text('{"preamble": "a", "epilogue": "b"}')
    if "template" in given:
        given = {**given, "template": tmp_path / given["template"]}
    with pytest.raises(error, match=message) as caught:
        load(parts, memory=memory, **given)
    assert "\n" not in str(caught.value)


def test_models_of_format_1_open_and_are_saved_as_format_2(parts, memory, tmp_path) -> None:
    rag = load(parts, memory=memory, retriever="bm25", variant="token", k=3)
    assert isinstance(rag.retriever, BM25Retriever)
    rag.retriever.scale = 0.5
    rag.defaults = {"max_tokens": 6, "stop": ["zzz"]}
    save(rag, tmp_path / "saved")
    of_format_1 = {
        "format": 1,
        "variant": "token",
        "k": 3,
        "retriever": "bm25",
        "bm25_scale": 0.5,
        "decoding": {"max_tokens": 6, "stop": ["zzz"]},
    }
    file = tmp_path / "saved" / "latentrag.json"
    of_format_2 = json.loads(file.read_text())
    file.write_text(json.dumps(of_format_1))
    again = load(tmp_path / "saved", memory=memory)
    assert again.answer(QUESTION) == rag.answer(QUESTION)
    save(again, tmp_path / "saved")
    assert json.loads(file.read_text()) == of_format_2


def test_an_unknown_retriever(parts, memory) -> None:
    with pytest.raises(InputError, match="retriever 'sparse' is unknown; needed one of dense, bm25"):
        load(parts, memory=memory, retriever="sparse")
