"""The loop on real tiny models: the same result however often a run is interrupted, or over how many processes."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latentrag import io
from latentrag.encoder import load_passage_encoder, load_query_encoder
from latentrag.errors import InputError, TrainingError, UnknownVersionError
from latentrag.generator import CausalGenerator, load_generator
from latentrag.generator.tuning import Lora
from latentrag.memory import Memory
from latentrag.retriever import DenseRetriever
from latentrag.training import checkpoint, loop
from latentrag.training.data import Example
from latentrag.training.log import read_log
from latentrag.training.loop import Outcome, Trainer
from latentrag.training.options import TrainingOptions
from latentrag.types import Passage
from tests import tiny
from tests.encoder.tiny import write_sentence_encoder
from tests.noting import noting

PASSAGES = [
    Passage("paris", "paris is the capital city of france", "paris"),
    Passage("rome", "rome is the capital city of italy", "rome"),
    Passage("berlin", "berlin is the capital city of germany", "berlin"),
    Passage("fidelio", "beethoven wrote the opera fidelio", "fidelio"),
    Passage("emma", "austen wrote the novel emma", "emma"),
    Passage("moon", "the moon is red", "moon"),
]
PAIRS = [
    ("capital of france ?", "paris"),
    ("capital of italy ?", "rome"),
    ("city in germany ?", "berlin"),
    ("who wrote opera ?", "beethoven"),
    ("who wrote book ?", "austen"),
    ("what is red ?", "the moon"),
    ("which opera ?", "fidelio"),
]
EXAMPLES = [Example(str(i), x, (y,)) for i, (x, y) in enumerate(PAIRS)]
OPTIONS = TrainingOptions(
    k=3,
    num_steps=9,
    batch_size=4,
    micro_batch_size=3,
    lr_retriever=1e-3,
    lr_generator=1e-3,
    warmup_steps=2,
    eval_every=3,
    save_every=2,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_sentence_encoder(folder / "encoder", head=["Normalize"])
    for name, save in (("llama", tiny.save_llama), ("bart", tiny.save_bart)):
        tiny.save_tokenizer(folder / name, end=name == "bart")
        save(folder / name, seed=1)
    encoder = load_passage_encoder(folder / "encoder")
    Memory.create(folder / "memory.lance", encoder).add(PASSAGES, encoder)
    return folder


def newest(run: Path) -> checkpoint.Checkpoint:
    """The run's last checkpoint, which is there."""
    found = checkpoint.newest(run)
    assert found is not None
    return found


def made(parts: Path, *, kind: str = "llama", lora: Lora | None = None):
    retriever = DenseRetriever(load_query_encoder(parts / "encoder"), Memory.open(parts / "memory.lance"))
    if lora is None:
        return retriever, load_generator(parts / kind)
    plain = tiny.load_causal(parts / kind)
    return retriever, CausalGenerator(plain.model, plain.tokenizer, lora=lora)


def trainer(parts: Path, run: Path, *, options=OPTIONS, kind="llama", lora=None, examples=EXAMPLES, **more) -> Trainer:
    retriever, generator = made(parts, kind=kind, lora=lora)
    if options.closed_book:
        retriever = None
    return Trainer(retriever, generator, examples, options=options, folder=run, **more)


SHORT = replace(OPTIONS, num_steps=5)


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory) -> Callable[..., tuple[Trainer, Outcome, Path]]:
    """A run that nothing interrupts: the trainer, what came out, its folder. Each once."""

    @cache
    def made(*, options: TrainingOptions = OPTIONS, lora: Lora | None = None) -> tuple[Trainer, Outcome, Path]:
        folder = tmp_path_factory.mktemp("whole") / "run"
        run = trainer(parts, folder, options=options, lora=lora, dev=EXAMPLES)
        return run, run.run(), folder

    return made


def losses_of(run: Path) -> list[float]:
    return [record["loss"] for record in read_log(run / "log.jsonl") if record["event"] == "train"]


@pytest.mark.parametrize("kind", ["llama", "bart"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"variant": "token"},
        {"hindsight": 2},
        {"objective": "emdr2"},
        {"objective": "pdist"},
        {"objective": "loop"},
        {"label_smoothing": 0.1},
        {"freeze": "generator"},
        {"freeze": "retriever"},
        {"warmup_generator": 4},
        {"warmup_retriever": 4},
        {"closed_book": True},
    ],
    ids=str,
)
def test_the_loss_falls_and_only_what_is_to_learn_changes(parts, tmp_path, kind, changes) -> None:
    options = replace(OPTIONS, num_steps=16, eval_every=16, save_every=100, **changes)
    run = trainer(parts, tmp_path / "run", options=options, kind=kind, dev=EXAMPLES)
    sides = {"retriever": run.retriever, "generator": run.generator}
    before = {
        name: [(weight, weight.detach().clone()) for _, weight in side.named_parameters()]
        for name, side in sides.items()
        if side is not None
    }
    assert run.run().finished
    first, last = (r["nll_per_token"] for r in read_log(tmp_path / "run" / "log.jsonl") if r["event"] == "dev")
    assert last < first
    for name, weights in before.items():
        changed = any(not torch.equal(weight, old) for weight, old in weights)
        assert changed == getattr(options, f"trains_{name}")


def test_hindsight_ends_where_it_is_to_end(parts, tmp_path) -> None:
    """Until then the losses are those of hindsight in all steps."""
    found = {}
    all_steps = replace(OPTIONS, hindsight=3, num_steps=3, freeze="generator")
    some_steps, no_steps = replace(all_steps, hindsight_steps=2), replace(all_steps, hindsight=0)
    for name, options in {"all": all_steps, "some": some_steps, "none": no_steps}.items():
        trainer(parts, tmp_path / name, options=options).run()
        found[name] = losses_of(tmp_path / name)
    assert found["some"][:2] == found["all"][:2] != found["none"][:2]
    assert found["some"][2] != found["all"][2]
    some, none = (read_log(tmp_path / name / "log.jsonl") for name in ("some", "none"))
    (third,) = [record for record in some if record["event"] == "train" and record["step"] == 3]
    assert third["loss"] == third["nll"]
    assert all(record["loss"] == record["nll"] for record in none if record["event"] == "train")


def test_the_generator_learns_first(parts, tmp_path) -> None:
    options = replace(OPTIONS, warmup_generator=4, num_steps=6, warmup_steps=0)
    run = trainer(parts, tmp_path / "run", options=options)
    run.run()
    records = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["event"] == "train"]
    assert [record["lr_retriever"] > 0 for record in records] == [False] * 4 + [True] * 2
    assert all("norm_retriever" not in record for record in records[:4])


@pytest.mark.parametrize("objective", ["nll", "emdr2"])
def test_the_retriever_learns_first(parts, tmp_path, objective) -> None:
    options = replace(OPTIONS, objective=objective, warmup_retriever=4, num_steps=6, warmup_steps=0)
    run = trainer(parts, tmp_path / "run", options=options)
    before = [weight.detach().clone() for _, weight in run.generator.named_parameters()]
    run.run(until=4)
    assert all(map(torch.equal, (weight for _, weight in run.generator.named_parameters()), before))
    run.run(resume=True)
    assert not all(map(torch.equal, (weight for _, weight in run.generator.named_parameters()), before))
    records = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["event"] == "train"]
    assert [record["lr_generator"] > 0 for record in records] == [False] * 4 + [True] * 2
    assert all(record["lr_retriever"] > 0 for record in records)


@pytest.mark.parametrize("stop", [1, 4, 5, 6], ids=["at once", "after dev", "after a checkpoint", "after neither"])
def test_a_resumed_run_is_the_uninterrupted_run(parts, tmp_path, stop, monkeypatch, whole) -> None:
    lora = Lora(rank=2) if stop % 2 else None
    uninterrupted, expected, folder = whole(lora=lora)

    first = trainer(parts, tmp_path / "parts", lora=lora, dev=EXAMPLES)
    step = first._step

    def interrupted(number: int, *rest: Any) -> float:
        if number == stop:
            raise KeyboardInterrupt
        return step(number, *rest)

    monkeypatch.setattr(first, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(parts, tmp_path / "parts", lora=lora, dev=EXAMPLES)
    found = second.run(resume=True)
    assert found == expected
    assert losses_of(tmp_path / "parts") == losses_of(folder)
    for name, weight in uninterrupted.parameters.items():
        assert torch.equal(second.parameters[name], weight), name
    steps = [r["step"] for r in read_log(tmp_path / "parts" / "log.jsonl") if r["event"] == "train"]
    assert steps == list(range(1, 10))


def test_micro_batches_change_nothing(parts, tmp_path) -> None:
    one = trainer(parts, tmp_path / "one", options=replace(OPTIONS, micro_batch_size=4))
    two = trainer(parts, tmp_path / "two", options=replace(OPTIONS, micro_batch_size=1))
    one.run()
    two.run()
    torch.testing.assert_close(losses_of(tmp_path / "one"), losses_of(tmp_path / "two"), rtol=0, atol=1e-4)


def test_every_example_comes_once_in_an_epoch(parts, tmp_path) -> None:
    run = trainer(parts, tmp_path / "run")
    drawn = [pair for step in range(7) for pair in run._batch(step)]
    for epoch in range(4):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == sorted(PAIRS)
    assert drawn[:7] != drawn[7:14]


def test_the_best_step_is_kept(parts, tmp_path) -> None:
    run = trainer(parts, tmp_path / "run", dev=EXAMPLES)
    outcome = run.run()
    dev = {r["step"]: r["nll_per_token"] for r in read_log(tmp_path / "run" / "log.jsonl") if r["event"] == "dev"}
    assert sorted(dev) == [0, 3, 6, 9]
    del dev[0]
    assert outcome.best_step == min(dev, key=dev.__getitem__)
    assert outcome.best_nll_per_token == dev[outcome.best_step]
    found = checkpoint.best(tmp_path / "run")
    assert found is not None
    assert found.step == outcome.best_step
    assert [folder.name for folder in sorted((tmp_path / "run").glob("best-*"))] == [f"best-{found.step:08d}"]


def test_a_full_disk_leaves_the_checkpoint_before(parts, tmp_path, monkeypatch) -> None:
    written = []

    def full(tensors, path, *rest) -> None:
        written.append(path)
        if len(written) == 4:  # the optimiser's moments of the second checkpoint
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, *rest)

    monkeypatch.setattr(checkpoint, "save_file", full)
    run = trainer(parts, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"step-00000004 cannot be written .*No space left.* is intact"):
        run.run()
    assert newest(tmp_path / "run").step == 2
    monkeypatch.setattr(checkpoint, "save_file", save_file)
    again = trainer(parts, tmp_path / "run")
    assert again.run(resume=True).finished
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("full_at", [0, 3, 4, 5])
def test_a_disk_that_is_full_for_the_log_costs_no_step(parts, tmp_path, monkeypatch, full_at, whole) -> None:
    """The run ends after that step with a checkpoint, and goes on with the same log as without."""
    uninterrupted, _, folder = whole(options=SHORT)
    append = io.append_lines

    def full(path: Path, records: Any, **more: Any) -> None:
        records = list(records)
        if path.name == "log.jsonl" and any(record["step"] >= full_at for record in records):
            raise OSError(28, "No space left on device")
        append(path, records, **more)

    monkeypatch.setattr(io, "append_lines", full)
    with pytest.raises(TrainingError, match=r"log.jsonl cannot be written \(No space left on device\); make room"):
        trainer(parts, tmp_path / "run", options=SHORT, dev=EXAMPLES).run()
    assert newest(tmp_path / "run").step == max(1, full_at)
    monkeypatch.setattr(io, "append_lines", append)
    second = trainer(parts, tmp_path / "run", options=SHORT, dev=EXAMPLES)
    assert second.run(resume=True).finished
    for name, weight in uninterrupted.parameters.items():
        assert torch.equal(second.parameters[name], weight), name
    found, expected = (
        [{**record, "time_s": 0} for record in read_log(run / "log.jsonl") if record["event"] != "resume"]
        for run in (tmp_path / "run", folder)
    )
    assert [record for record in found if record["event"] != "done"] == expected[:-1]


@pytest.mark.parametrize("num_bytes", [0, 700, 20_000, 60_000])
def test_a_full_disk_costs_one_line(parts, tmp_path, num_bytes, whole) -> None:
    """Whatever it is that does not fit: a line of the log, the weights of a step or of the best one."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = trainer(parts, tmp_path / "run", options=SHORT, dev=EXAMPLES)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot be written \(.*make room"):
            run.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "run").glob(".*"))
    again = trainer(parts, tmp_path / "run", options=SHORT, dev=EXAMPLES)
    assert again.run(resume=True).finished
    assert losses_of(tmp_path / "run") == losses_of(whole(options=SHORT)[2])


def test_another_models_checkpoint_is_refused(parts, tmp_path) -> None:
    trainer(parts, tmp_path / "run").run()
    other = trainer(parts, tmp_path / "run", kind="bart")
    with pytest.raises(TrainingError, match="checkpoint of another model"):
        other.run(resume=True)


def test_a_damaged_checkpoint_is_refused_in_one_line(parts, tmp_path) -> None:
    trainer(parts, tmp_path / "run").run()
    (tmp_path / "run" / "step-00000009" / "state.json").write_text("{")
    with pytest.raises(TrainingError, match="cannot be read"):
        trainer(parts, tmp_path / "run").run(resume=True)


def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_do(parts, tmp_path, monkeypatch) -> None:
    run = trainer(parts, tmp_path / "run", options=replace(OPTIONS, num_steps=3, save_every=1))
    real = run.generator.log_p_theta
    broken = lambda *given: real(*given) * (math.nan if run.optimiser.state else 1.0)  # noqa: E731
    monkeypatch.setattr(run.generator, "log_p_theta", broken)
    with pytest.raises(TrainingError, match="the loss of step 2 is nan"):
        run.run()
    assert all(torch.isfinite(weight).all() for weight in run.parameters.values())
    assert newest(tmp_path / "run").step == 1


def test_a_gradient_that_is_no_number_ends_the_run_before_the_weights_do(parts, tmp_path) -> None:
    run = trainer(parts, tmp_path / "run", options=replace(OPTIONS, num_steps=3, save_every=1))
    weight = next(weight for _, weight in run.generator.named_parameters() if weight.requires_grad)
    weight.register_hook(lambda grad: grad * (math.inf if run.optimiser.state else 1.0))
    with pytest.raises(TrainingError, match=r"the gradient of the generator of step 2 is (inf|nan); begin again in"):
        run.run()
    assert all(torch.isfinite(weight).all() for weight in run.parameters.values())
    assert newest(tmp_path / "run").step == 1


def test_weights_in_half_precision_are_not_trained(parts, tmp_path) -> None:
    """Adam's steps are lost in rounding: 88 of 6,656 weights were changed by a hundred of them."""
    retriever, generator = made(parts)
    generator.model.bfloat16()
    with pytest.raises(InputError, match=r"the generator's weights are torch.bfloat16.*; load it in float32"):
        Trainer(retriever, generator, EXAMPLES, options=OPTIONS, folder=tmp_path)
    Trainer(retriever, generator, EXAMPLES, options=replace(OPTIONS, freeze="generator"), folder=tmp_path).run()


def test_weights_that_hardly_move_are_named(parts, tmp_path) -> None:
    """Once a side, at the first step near its highest rate."""

    def warnings_of(name: str, **rates: Any) -> list[dict[str, Any]]:
        trainer(parts, tmp_path / name, options=replace(OPTIONS, num_steps=3, **rates)).run()
        return [record for record in read_log(tmp_path / name / "log.jsonl") if record["event"] == "warning"]

    assert warnings_of("usual") == []
    assert warnings_of("low", lr_generator=1e-7, lr_retriever=1e-7) == []
    (generator,) = warnings_of("generator", lr_generator=1e-12)
    assert generator["text"].startswith("step 1 changed 0.")
    assert "of the generator that have a gradient: its rate of 5e-13 is too small" in generator["text"]
    assert generator["text"].endswith("raise --lr-generator")


def test_out_of_memory_says_how_to_go_on(parts, tmp_path, monkeypatch) -> None:
    run = trainer(parts, tmp_path / "run", options=replace(OPTIONS, num_steps=4))
    gradients, steps = run._gradients, iter(range(4))

    def full(*given: Any) -> torch.Tensor:
        if next(steps) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")
        return gradients(*given)

    monkeypatch.setattr(run, "_gradients", full)
    message = r"step 3 ran out of memory \(CUDA out of memory\); .* smaller --micro-batch-size than 3, or --recompute"
    with pytest.raises(TrainingError, match=message):
        run.run()
    again = trainer(parts, tmp_path / "run", options=replace(OPTIONS, num_steps=4, micro_batch_size=1))
    assert again.run(resume=True).finished


def test_a_generator_that_learns_later_has_no_moments_before(parts, tmp_path) -> None:
    options = replace(OPTIONS, label_smoothing=0.1, warmup_retriever=2, num_steps=4, warmup_steps=0)
    run = trainer(parts, tmp_path / "run", options=options)
    run.run(until=2)
    assert set(run.optimiser.state) == set(run._sides["retriever"].values())
    run.run(resume=True)
    assert len(run.optimiser.state) == len(run.parameters)


def test_a_stop_at_a_step_that_was_saved_saves_nothing_again(parts, tmp_path, monkeypatch) -> None:
    saved: list[int] = []
    save = noting(checkpoint.save, lambda _, step, **__: saved.append(step))
    monkeypatch.setattr(checkpoint, "save", save)
    trainer(parts, tmp_path / "run", options=replace(OPTIONS, num_steps=6, save_every=2)).run(until=4)
    assert saved == [2, 4]


def save_best(run: Path, value: float) -> None:
    weights = {"w": torch.nn.Parameter(torch.full((2,), value))}
    checkpoint.save_best(run, 3, parameters=weights, state={})


def best_weights(run: Path) -> list[float]:
    read = {"w": torch.nn.Parameter(torch.zeros(2))}
    found = checkpoint.best(run)
    assert found is not None
    checkpoint.restore(found, parameters=read)
    return read["w"].tolist()


@pytest.mark.parametrize("suffix", ["old", "replaced"])
@pytest.mark.parametrize("killed", ["never", "before the new one has its name", "after it"])
def test_a_best_step_that_comes_again_replaces_its_weights(tmp_path, killed, suffix) -> None:
    """Whenever that is interrupted there is one, and the next time nothing is left over. Earlier versions called it
    .replaced."""
    save_best(tmp_path, 1.0)
    only, before = tmp_path / "best-00000003", tmp_path / f".best-00000003.{suffix}"
    if killed == "after it":
        shutil.copytree(only, before)
    elif killed != "never":
        only.rename(before)
    assert best_weights(tmp_path) == [1.0, 1.0]
    save_best(tmp_path, 2.0)
    assert best_weights(tmp_path) == [2.0, 2.0]
    assert [path.name for path in tmp_path.iterdir()] == [only.name]


def test_copies_under_other_names_are_left_alone_and_are_no_checkpoints(tmp_path) -> None:
    save_best(tmp_path, 1.0)
    names = ("best-00000003-keep", "best-00000003.bak", "best-of-all", ".best-notes")
    for name in names:
        shutil.copytree(tmp_path / "best-00000003", tmp_path / name)
    save_best(tmp_path, 2.0)
    assert best_weights(tmp_path) == [2.0, 2.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["best-00000003", *names])


@pytest.mark.parametrize("suffix", ["old", "replaced"])
def test_the_best_weights_are_saved_and_a_checkpoint_that_was_being_replaced_stays(parts, tmp_path, suffix) -> None:
    """It is the only one, until the next step is saved."""
    trainer(parts, tmp_path, options=replace(OPTIONS, num_steps=4)).run(until=2)
    (only,) = tmp_path.glob("step-*")
    only.rename(before := only.with_name(f".{only.name}.{suffix}"))
    save_best(tmp_path, 1.0)
    assert newest(tmp_path).folder == before


def test_a_run_goes_on_from_a_checkpoint_that_was_being_replaced(parts, tmp_path) -> None:
    options = replace(OPTIONS, num_steps=4)
    trainer(parts, tmp_path / "whole", options=options).run()
    trainer(parts, tmp_path / "cut", options=options).run(until=2)
    (only,) = (tmp_path / "cut").glob("step-*")
    only.rename(only.with_name(f".{only.name}.old"))
    trainer(parts, tmp_path / "cut", options=options).run(resume=True)
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    assert list((tmp_path / "cut").glob(".*")) == []


def test_another_process_has_made_a_version_that_is_seen_late(monkeypatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    tries: list[int] = []

    class Late:
        version = 2

        def refresh(self) -> int:
            raise AssertionError("the main process does that")

        def use(self, version: int) -> None:
            tries.append(version)
            if len(tries) < 3:
                raise UnknownVersionError("no version 3")

    loop._use_when_seen(Late(), 3)
    assert tries == [3, 3, 3]
    monkeypatch.setattr(loop, "SEEN_S", -1)
    tries.clear()
    with pytest.raises(UnknownVersionError):
        loop._use_when_seen(Late(), 3)
    assert tries == [3]


def test_settings_that_cannot_be() -> None:
    for changes, message in (
        ({"k": 0}, "k=0"),
        ({"objective": "mse"}, "objective='mse'"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": 0.1, "objective": "loop"}, "label_smoothing is not for"),
        ({"closed_book": True, "hindsight": 2}, "closed_book"),
        ({"freeze": "retriever", "hindsight": 2}, "hindsight proposes"),
        ({"hindsight": 2, "hindsight_steps": 3, "warmup_generator": 3}, "end before the retriever learns"),
        ({"freeze": "generator", "warmup_generator": 1}, "warmup_generator"),
        ({"warmup_generator": 9}, "leaves none"),
        ({"warmup_retriever": 9}, "leaves none"),
        ({"warmup_retriever": 2, "warmup_generator": 2}, "leave one of them out"),
        ({"warmup_retriever": 2, "freeze": "retriever"}, "leave one of them out"),
        ({"freeze": "retriever", "refresh_every": 5}, "refresh_every"),
        ({"lr_retriever": -1.0}, "lr_retriever"),
        ({"lr_retriever": 0.0}, "lr_retriever=0.0; needed more than 0"),
        ({"lr_generator": 0.0}, "lr_generator=0.0; needed more than 0"),
        ({"lr_generator": math.inf}, "lr_generator=inf; needed a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            replace(OPTIONS, **changes)


def test_no_examples(parts, tmp_path) -> None:
    with pytest.raises(InputError, match="no examples"):
        trainer(parts, tmp_path / "run", examples=[])


def test_rates() -> None:
    options = replace(OPTIONS, num_steps=10, warmup_steps=2, warmup_generator=4, lr_retriever=1.0, lr_generator=2.0)
    assert [options.rate_of_retriever(step) for step in range(10)] == [0, 0, 0, 0, 0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [options.rate_of_generator(step) for step in (0, 1, 2, 9)] == [1.0, 2.0, 2.0, 0.25]
    assert options.rate_of_generator(9) > 0


def test_the_log_has_what_a_plot_needs(parts, tmp_path) -> None:
    trainer(parts, tmp_path / "run", dev=EXAMPLES).run()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    train = next(json.loads(line) for line in lines if json.loads(line)["event"] == "train")
    assert {"loss", "nll", "num_tokens", "lr_retriever", "lr_generator", "norm_retriever", "norm_generator"} <= {*train}
    dev = next(json.loads(line) for line in lines if json.loads(line)["event"] == "dev")
    assert {"nll_per_token", "prior_entropy", "posterior_entropy", "kl", "gap", "unique_top"} <= {*dev}
