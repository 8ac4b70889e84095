"""Every public way on an accelerator, beside the same on the CPU: on the fake one, or on a real one that
LATENTRAG_TEST_DEVICE names, as in `make test-gpu`."""

import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from latentrag import place as place_module
from latentrag.assemble import ModelSpec, load, load_passage_encoder, served_memory
from latentrag.assemble.runs import Setup, train
from latentrag.cli.serve import _sources
from latentrag.encoder import load_query_encoder, loading
from latentrag.errors import ModelError
from latentrag.evaluation.run import evaluate
from latentrag.memory import Memory
from latentrag.options import AskOptions, Given, MemoryOptions, ModelOptions, PlaceOptions, SystemOptions
from latentrag.place import Place
from latentrag.rag import Rag
from latentrag.serving.app import create_app
from latentrag.training import processes
from latentrag.training.data import Example
from latentrag.training.loop import Trainer
from latentrag.training.options import TrainingOptions
from latentrag.training.processes import Processes
from tests import fake_device, tiny
from tests.cli.conftest import cli
from tests.conftest import fill, write_pair
from tests.encoder.tiny import write_dpr, write_sentence_encoder
from tests.serving.conftest import serving
from tests.test_assemble import PASSAGES
from tests.test_transformers_rag import checkpoint

QUESTIONS = ["what is the capital of france ?", "who wrote the opera fidelio ?"]
ANSWERS = ["paris", "beethoven wrote it"]
NAMED = os.environ.get("LATENTRAG_TEST_DEVICE", "")
CLOSE = 1e-4


@pytest.fixture
def device(monkeypatch) -> str:
    if NAMED:
        return NAMED
    if not fake_device.install():
        pytest.skip("this torch takes no device that is written in Python")
    monkeypatch.setattr(place_module, "ACCELERATORS", (*place_module.ACCELERATORS, fake_device.NAME))
    return fake_device.NAME


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    encoder, generator = write_pair(tmp_path_factory.mktemp("parts"))
    return encoder, generator


@pytest.fixture(scope="module")
def filled(pair) -> Path:
    return Path(fill(pair[0].with_name("memory.lance"), pair[0]))


@pytest.fixture(scope="module", params=["llama", "bart"])
def spec(request, pair) -> tuple[Path, Path]:
    """Encoder and generator."""
    if request.param == "llama":
        return pair
    folder = pair[0].with_name("bart")
    tiny.save_tokenizer(folder)
    tiny.save_bart(folder)
    return pair[0], folder


@cache
def both(spec: Any, memory: Path, device: str, **options: Any) -> tuple[Rag, Rag]:
    """The model on the CPU and on the device."""
    options = {"k": 3, **options}
    there, here = (load(spec, memory=memory, device=name, **options) for name in ("cpu", device))
    for part, name in ((here.generator, "model"), (getattr(here.retriever, "query_encoder", None), "module")):
        module = getattr(part, name, torch.nn.Module())
        assert {weight.device.type for weight in module.parameters()} <= {torch.device(device).type}
    return there, here


@pytest.mark.parametrize("decoding", ["exact", "thorough", "fast"])
def test_answers(decoding, spec, filled, device) -> None:
    rags = both(spec, filled, device)
    there, here = (rag.answer_batch(QUESTIONS, decoding=decoding, max_tokens=5, num_best=2) for rag in rags)
    for theirs, ours in zip(there, here, strict=True):
        assert ours.text == theirs.text
        assert ours.log_prob == pytest.approx(theirs.log_prob, abs=CLOSE)
        assert [s.posterior for s in ours.sources] == pytest.approx([s.posterior for s in theirs.sources], abs=CLOSE)


def test_rag_token_without_a_passage_and_with_a_stop(spec, filled, device) -> None:
    there, here = (
        rag.answer(QUESTIONS[0], variant="token", without=["rome"], max_tokens=6, min_tokens=2, no_repeat_ngram_size=2)
        for rag in both(spec, filled, device)
    )
    assert here.text == there.text
    assert here.log_prob == pytest.approx(there.log_prob, abs=CLOSE)


def test_a_seed_draws_the_same_samples_everywhere(spec, filled, device) -> None:
    there, here = (
        rag.answer_batch(QUESTIONS, sample=True, seed=3, num_beams=2, num_best=2, top_p=0.9, top_k=20, max_tokens=4)
        for rag in both(spec, filled, device)
    )
    assert [answer.text for answer in here] == [answer.text for answer in there]


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_scores(variant, spec, filled, device) -> None:
    there, here = (rag.score_batch(QUESTIONS, ANSWERS, variant=variant) for rag in both(spec, filled, device))
    for theirs, ours in zip(there, here, strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=CLOSE)
        assert ours.closed_book_log_likelihood == pytest.approx(theirs.closed_book_log_likelihood, abs=CLOSE)
        assert ours.without_passage == pytest.approx(theirs.without_passage, abs=CLOSE)


def test_classes(spec, filled, device) -> None:
    labels = ["paris", "rome in italy", "the moon"]
    there, here = (rag.classify(QUESTIONS[0], labels) for rag in both(spec, filled, device))
    assert [label.text for label in here.labels] == [label.text for label in there.labels]
    for theirs, ours in zip(there.labels, here.labels, strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=CLOSE)


@pytest.mark.parametrize("options", [{}, {"closed_book": True}, {"decoding": "fast"}])
def test_evaluation(options, spec, filled, device) -> None:
    examples = [Example(f"e{i}", x, (y,)) for i, (x, y) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]
    rags = both(spec, filled, device)
    there, here = (evaluate(rag, examples, None, options=rag.options(max_tokens=4), **options) for rag in rags)
    for name, estimate in there.estimates.items():
        assert here.estimates[name].mean == pytest.approx(estimate.mean, abs=CLOSE), name


def test_bm25_answers(spec, filled, device) -> None:
    there, here = (rag.answer(QUESTIONS[0], max_tokens=4) for rag in both(spec, filled, device, retriever="bm25"))
    assert here.text == there.text
    assert here.log_prob == pytest.approx(there.log_prob, abs=CLOSE)


@pytest.mark.parametrize("apart", ["encoder", "generator", "both"])
def test_each_part_on_a_device_of_its_own(apart, spec, filled, device) -> None:
    other = f"{device}:1" if apart == "both" and not NAMED else "cpu"
    places = {"device": device, "encoder_device": other}
    if apart == "generator":
        places = {"device": "cpu", "encoder_device": device}
    there, here = load(spec, memory=filled, k=3, device="cpu"), load(spec, memory=filled, k=3, **places)
    assert here.answer(QUESTIONS[0], max_tokens=4).text == there.answer(QUESTIONS[0], max_tokens=4).text
    assert here.log_likelihood(*pair_of(0)) == pytest.approx(there.log_likelihood(*pair_of(0)), abs=CLOSE)
    ours, theirs = (rag.classify(QUESTIONS[0], ["a", "the"]).labels[0] for rag in (here, there))
    assert ours.text == theirs.text
    assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=CLOSE)


def pair_of(number: int) -> tuple[str, str]:
    return QUESTIONS[number], ANSWERS[number]


@pytest.mark.parametrize("kind", ["t5", "gemma2", "gpt2"])
def test_other_architectures_answer(kind, pair, filled, tmp_path, device) -> None:
    folder = tmp_path / kind
    tiny.save_tokenizer(folder, begin=kind != "t5", end=kind == "t5")
    getattr(tiny, f"save_{kind}")(folder)
    there, here = (rag.answer(QUESTIONS[0], max_tokens=5) for rag in both((pair[0], folder), filled, device))
    assert here.text == there.text
    assert here.log_prob == pytest.approx(there.log_prob, abs=CLOSE)


@pytest.mark.filterwarnings("ignore:cannot verify")
def test_the_layout_of_facebook_rag(tmp_path, device) -> None:
    checkpoint(tmp_path / "rag", 0)
    encoder = load_passage_encoder(write_dpr(tmp_path / "d", "DPRContextEncoder"), device="cpu")
    memory = Memory.create(tmp_path / "memory.lance", encoder).add(PASSAGES, encoder)
    there, here = (rag.answer(QUESTIONS[0], max_tokens=4) for rag in both(tmp_path / "rag", memory.path, device))
    assert here.text == there.text
    assert here.log_prob == pytest.approx(there.log_prob, abs=CLOSE)


@pytest.mark.parametrize("modes", [["cls", "max"], ["mean_sqrt_len_tokens", "weightedmean"], ["lasttoken"], ["dpr"]])
def test_encoders(modes, tmp_path, device) -> None:
    if modes == ["dpr"]:
        folders = [write_dpr(tmp_path / name, f"DPR{name}Encoder") for name in ("Question", "Context")]
    else:
        folders = [write_sentence_encoder(tmp_path / "encoder", modes=modes, head=["Dense", "Normalize"])] * 2
    queries, vectors = [], []
    for name in ("cpu", device):
        query_encoder = load_query_encoder(folders[0], place=Place(name))
        passage_encoder = load_passage_encoder(folders[1], device=name)
        for module in (query_encoder.module, passage_encoder.module):
            assert {weight.device.type for weight in module.parameters()} == {torch.device(name).type}
        queries.append(query_encoder.encode_queries(QUESTIONS).detach().cpu())
        vectors.append(passage_encoder.encode_passages(PASSAGES))
    torch.testing.assert_close(queries[1], queries[0], rtol=1e-4, atol=CLOSE)
    torch.testing.assert_close(vectors[1], vectors[0], rtol=1e-4, atol=CLOSE)


@pytest.mark.skipif(NAMED == "cpu", reason="it has float64")
def test_an_encoder_in_float64_on_a_device_without(tmp_path, device, monkeypatch) -> None:
    monkeypatch.setattr(loading, "has_float64", lambda name: not name.startswith(device))
    encoder = load_passage_encoder(write_sentence_encoder(tmp_path / "encoder"), device="cpu")
    encoder.module.double()
    encoder.save(tmp_path / "double")
    assert load_passage_encoder(tmp_path / "double", device="cpu").encode_passages(PASSAGES).dtype == torch.float32
    with pytest.raises(ModelError, match=f"saved in float64, which {device} has not; use --encoder-device cpu"):
        load_passage_encoder(tmp_path / "double", device=device)


def test_several_processes_add_up_without_float64(device, monkeypatch) -> None:
    monkeypatch.setattr(processes, "has_float64", lambda name: not name.startswith(device))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(2))
    several = Processes(0, 2, torch.device(device))
    assert several.sum(torch.tensor([1.5, 3.0], dtype=torch.float64)).tolist() == [3.0, 6.0]
    assert several.agree(True) is True


def test_a_memory_is_filled_and_encoded_again(pair, tmp_path, device) -> None:
    encoder, on_cpu = (load_passage_encoder(pair[0], device=name) for name in (device, "cpu"))
    assert encoder.fingerprint == on_cpu.fingerprint
    memory = Memory.create(tmp_path / "other.lance", encoder).add(PASSAGES, encoder)
    vectors = on_cpu.encode_passages(PASSAGES)
    q = vectors.numpy()
    assert memory.search(q, 4).vectors[:, 0] == pytest.approx(q, abs=1e-3)
    assert len(memory.reencode(encoder)) == len(memory)


RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "an adapter": ("llama", {}, {"lora": 2}),
    "all weights": ("llama", {"objective": "loop", "hindsight": 1}, {"recompute": True, "encoder_device": "cpu"}),
    "one side": ("llama", {"objective": "pdist", "freeze": "generator"}, {}),
    "closed book": ("llama", {"closed_book": True, "autocast": True}, {}),
    "smoothed labels": ("bart", {"variant": "token", "label_smoothing": 0.1}, {}),
    "a reader": ("bart", {"objective": "emdr2", "hindsight": 1}, {"encoder_device": "cpu"}),
    "both encoders": ("bart", {"refresh_every": 2}, {}),
}


@pytest.mark.parametrize(("spec", "options", "more"), RUNS.values(), ids=RUNS, indirect=["spec"])
def test_training_ends_where_it_does_on_the_cpu(options, more, spec, filled, tmp_path, device) -> None:
    """And the model that it saves answers."""
    if "lora" in more:
        pytest.importorskip("peft")
    data = tmp_path / "train.jsonl"
    rows = [{"id": x, "question": x, "answer": [y]} for x, y in zip(QUESTIONS, ANSWERS, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = {"k": 2, "num_steps": 3, "batch_size": 2, "micro_batch_size": 1, "eval_every": 3, "save_every": 3}
    found = {}
    for place in dict.fromkeys(("cpu", device)):
        out, memory = tmp_path / f"on {place}" / "run", shutil.copytree(filled, tmp_path / f"on {place}" / "memory")
        setup = Setup(data=(data,), dev=data, memory=memory, model=ModelSpec(*spec), device=place, out=out, **more)
        found[place] = train(setup, Given.of(TrainingOptions, {**steps, **options}))
        assert load(out / "model", memory=memory, device=place).answer(QUESTIONS[0], k=2, max_tokens=3).log_prob <= 0
    close = 1e-2 if options.get("autocast") else 1e-3
    assert found[device].last_nll == pytest.approx(found["cpu"].last_nll, rel=close)
    assert found[device].best_nll_per_token == pytest.approx(found["cpu"].best_nll_per_token, rel=close)


def test_a_run_goes_on_from_its_checkpoint(pair, filled, tmp_path, device) -> None:
    """The optimiser's moments and the scores that are kept go back to the device."""
    rag = load(pair, memory=filled, device=device)
    options = TrainingOptions(num_steps=4, batch_size=2, k=2, warmup_retriever=2, save_every=1, eval_every=9)
    examples = [Example(x, x, (y,)) for x, y in zip(QUESTIONS, ANSWERS, strict=True)]

    def trainer(folder: str, model: Any) -> Trainer:
        return Trainer(model.retriever, model.generator, examples, options=options, folder=tmp_path / folder)

    whole = trainer("whole", rag).run()
    trainer("parts", load(pair, memory=filled, device=device)).run(until=3)
    resumed = trainer("parts", load(pair, memory=filled, device=device)).run(resume=True)
    assert resumed.last_nll == pytest.approx(whole.last_nll, rel=1e-5)


@pytest.mark.parametrize("where", ["ram", "device"])
def test_passages_are_kept_in_the_memory_that_was_chosen(where, pair, filled, tmp_path, device) -> None:
    there = load(pair, memory=filled, k=3, device="cpu").log_likelihood(*pair_of(0))
    for _ in range(2):  # the second finds them in the folder
        rag = load(
            pair, memory=filled, k=3, device=device, passage_cache_in=where, passage_cache_folder=tmp_path / "kept"
        )
        for _ in range(2):
            assert rag.log_likelihood(*pair_of(0)) == pytest.approx(there, abs=CLOSE)
        cache = tiny.causal_of(rag).passage_cache
        assert cache is not None
        assert cache.num_hits >= 3
        devices = {layer.device.type for layers in cache._entries.values() for layer in layers}
        assert devices == {"cpu" if where == "ram" else torch.device(device).type}


def test_every_command_takes_a_device(pair, filled, tmp_path, device, monkeypatch) -> None:
    """Each opens the model where it is told."""
    data = tmp_path / "questions.jsonl"
    row = {"id": "e", "question": QUESTIONS[0], "answer": ["paris"], "x": "rome", "y": "a"}
    data.write_text(json.dumps(row) + "\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("rome is a city in italy")
    encoder, generator = pair
    on = ["--device", device]
    model = ["--encoder", encoder, "--generator", generator, "-i", filled, *on]
    few = ["-k", 2, "--max-tokens", 3]
    commands: list[list[Any]] = [
        ["ask", QUESTIONS[0], *model, *few, "--passage-cache-in", "device"],
        ["ask", QUESTIONS[0], *model[:-1], "cpu", "--encoder-device", device, *few],
        ["classify", QUESTIONS[0], "paris", "rome", *model, "-k", 2],
        ["score", data, *model, "-k", 2],
        ["eval", data, *model, *few],
        ["doctor", *model],
        ["index", "add", tmp_path / "new.lance", tmp_path / "notes", "--encoder", encoder, *on],
        ["index", "sync", tmp_path / "new.lance", tmp_path / "notes", "--encoder", encoder, "--encoder-device", device],
        ["train", data, *model, "--out", tmp_path / "run", "--steps", 1, "-k", 2, "--batch-size", 1, "--lora", 0],
    ]
    for command in commands:
        used: set[str] = set()
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.Module, "to", noted(torch.nn.Module.to, used))
            done = cli(*command, *(["--json"] if command[0] != "train" else []))
        assert done.code == 0, (command, done.stderr)
        assert torch.device(device).type in used, command
        if command[0] == "doctor":
            assert {each["name"] for each in done.json["devices"]} >= {"cpu", str(torch.empty(0, device=device).device)}
            assert done.json["model"]["generator"]["device"].startswith(device)


def noted(to: Any, used: set[str]) -> Any:
    """``Module.to``, which notes the kinds of devices."""

    def moved(self: torch.nn.Module, *args: Any, **named: Any) -> torch.nn.Module:
        used.update(torch.device(each).type for each in args if isinstance(each, str))
        module: torch.nn.Module = to(self, *args, **named)
        return module

    return moved


def test_a_server_answers_on_its_device(pair, filled, device) -> None:
    """Answers, streams and scores, as `latentrag serve --device` starts it."""
    model = ModelOptions(encoder=str(pair[0]), generator=str(pair[1]))
    system = SystemOptions(MemoryOptions(str(filled)), model=model, place=PlaceOptions(device=device))
    live, opening = _sources(system, AskOptions(k=3), served_memory)
    rag = opening()
    assert tiny.causal_of(rag).device.type == torch.device(device).type
    there = load(pair, memory=filled, k=3, device="cpu").answer(QUESTIONS[0], max_tokens=4)
    with serving(create_app(rag, live, name="tiny", load=opening)) as served:
        asked = {"question": QUESTIONS[0], "max_tokens": 4}
        answers = [served.post("/v1/answer", asked).json(), last_event(served.post("/v1/answer/stream", asked).text)]
        score = served.post("/v1/score", {"x": QUESTIONS[0], "y": "paris"})
        assert served.get("/v1/model").json()["device"].startswith(device)
    assert [answer["answer"] for answer in answers] == [there.text] * 2
    assert score.status_code == 200


def last_event(stream: str) -> Any:
    return json.loads([line for line in stream.splitlines() if line.startswith("data: ")][-1].removeprefix("data: "))
