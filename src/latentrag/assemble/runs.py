"""A training run from names and options to a saved model: opens data, memory and model, trains, writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from latentrag import io
from latentrag.assemble.given import with_texts
from latentrag.assemble.memories import memory_at, some_of
from latentrag.assemble.models import load, prompt_settings, save, with_parts
from latentrag.assemble.parts import ModelSpec, Source, content_key
from latentrag.assemble.training import check_trainable, generator_for_training, retriever_for_training
from latentrag.errors import DataError, InputError
from latentrag.generator import Lora
from latentrag.memory import Memory
from latentrag.options import Given
from latentrag.protocols import KeepsPassages, TrainableRetriever, can_decode
from latentrag.rag import Rag
from latentrag.training import checkpoint
from latentrag.training.data import Example
from latentrag.training.given import IDS
from latentrag.training.loop import Outcome, Trainer
from latentrag.training.options import (
    OBJECTIVES,
    RunOptions,
    TrainingOptions,
    check_used,
    chosen_for,
    options_from,
    without_effect,
)
from latentrag.training.processes import Processes
from latentrag.training.rows import reads, usable
from latentrag.training.tasks import OPEN_QA, read_task

DEV_LIMIT = 200
"""Questions of a development set that are used unless the options say otherwise."""
LARGE = 100_000_000
"""Parameters from which on a causal generator is trained by an adapter unless the options say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup(RunOptions):
    """What a run needs besides ``TrainingOptions``.

    Attributes:
        data: files of examples to train on, one or several; see ``read_examples``.
        memory: a path, "demo", or an address with a scheme. A run keeps to the version that it began with.
        where: a condition that the passages retrieved satisfy, as for ``latentrag.load``.
        model: as for ``latentrag.load``.
        retriever: a name in ``RETRIEVERS``, or as the model says.
        reranker, candidates: for a hybrid retriever, as for ``latentrag.load``.
        instruction, template: the generator's prompt, as for ``latentrag.load``.
        null_passage: the logit of "no passage" before training, as for ``latentrag.load``.
        set_size, set_bonus: as for ``latentrag.load``, γ before training.
        rewrites: as for ``latentrag.load``; each conversation is rewritten once.
        neighbours: as for ``latentrag.load``.
    """

    data: tuple[Path, ...]
    memory: Source
    model: Source | ModelSpec
    where: str | None = None
    retriever: str | None = None
    reranker: Source | None = None
    candidates: int | None = None
    instruction: str | None = None
    template: Source | None = None
    null_passage: float | None = None
    set_size: int | None = None
    set_bonus: float | None = None
    rewrites: int | None = None
    neighbours: int | None = None


def train(
    setup: Setup,
    given: Given[TrainingOptions],
    *,
    resume: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Train, and if the run ends by itself save the model of its best step under OUT/model.

    Args:
        given: the training options that were chosen; all others follow from data, model and memory.
        resume: continue from the newest checkpoint in ``setup.out``.
        say: gets lines for the user.
    Raises: InputError for no file, one given twice, or a folder that holds another run; TrainingError, DataError,
        ModelError, MemoryStoreError. Of several processes the first to fail raises one of these, the others
        OtherProcessError.
    """
    processes = Processes.start(device=setup.device)
    with processes.together():
        return _train(setup, given, processes, resume=resume, progress=progress, say=say)


def _train(
    setup: Setup,
    given: Given[TrainingOptions],
    processes: Processes,
    *,
    resume: bool,
    progress: bool,
    say: Callable[[str], None],
) -> Outcome:
    if len({path.resolve() for path in setup.data}) < max(1, len(setup.data)):
        raise InputError(f"got the files {', '.join(map(str, setup.data)) or 'none'}; needed one or more, each once")
    by_file = [(path, _examples(path, setup, say)) for path in setup.data]
    examples = _all_of(by_file)
    dev = () if setup.dev is None else _examples(setup.dev, setup, say)[: setup.dev_limit or DEV_LIMIT]
    epochs = 1.0 if setup.epochs is None else setup.epochs
    options = options_from(given, epochs, len(examples))
    check_used(setup, given, options)
    hybrid = None if setup.retriever != "hybrid" else setup.retriever
    of_passages: dict[str, object] = {"--null-passage": setup.null_passage, "--set-size": setup.set_size}
    of_passages |= {"--where": setup.where, "--reranker": setup.reranker, "--candidates": setup.candidates}
    of_passages |= {"--set-bonus": setup.set_bonus, "--rewrites": setup.rewrites, "--neighbours": setup.neighbours}
    for flag, value in {**of_passages, "--retriever hybrid": hybrid}.items():
        if value is not None and options.closed_book:
            raise InputError(f"{flag} has no effect, since closed book reads no passages; leave it out")
    before = checkpoint.read_request(setup.out, resume=resume)
    memory = _memory(setup, before, processes)
    if setup.passages_from is not None and memory is not None:
        reading: dict[str, Any] = {"skip_bad": setup.skip_bad, "say": say}
        by_file = [(path, with_texts(each, memory, name=path, **reading)) for path, each in by_file]
        examples, dev = _all_of(by_file), with_texts(dev, memory, name=setup.dev, **reading)
    keep_preamble = _keeps_preamble(setup, options, before)
    num_given = _num_given(setup, [*examples, *dev])
    rag, lora = _model(
        setup, memory, num_given, options, examples, device=str(processes.device), keep_preamble=keep_preamble
    )
    generator: Any = rag.generator
    examples = _all_of([(path, _usable(path, each, rag, setup, options, say)) for path, each in by_file])
    dev = dev and _usable(setup.dev, dev, rag, setup, replace(options, answers="first"), say)
    options = chosen_for(
        options_from(given, epochs, len(examples)),
        given,
        reads_untrained=generator.capabilities.keeps_prefixes,
        trains_adapter=lora is not None,
        num_passages=options.k if num_given is not None or memory is None else len(memory),
    )
    request = _request(setup, options, lora, memory, keep_preamble=keep_preamble)
    retriever: Any = None if options.closed_book else rag.retriever
    if retriever is not None:
        _try_retrieval(retriever, examples[0], options)
        if options.refresh_every and processes.is_main:
            _ = retriever.memory.stored  # which this process will re-encode
    trainer = Trainer(
        retriever,
        generator,
        examples,
        options=options,
        folder=setup.out,
        dev=dev,
        processes=processes,
        refresher=retriever if options.refresh_every else None,
        values=rag.model.values,
        readings=rag.model.readings,
        progress=progress,
    )
    if before is not None:
        checkpoint.check_same_request(setup.out, before, request, free=_free(options))
    processes.wait()  # all have seen what the folder holds before this run writes there
    with checkpoint.claimed(setup.out) if processes.is_main else nullcontext():
        if before is None and processes.is_main:
            checkpoint.write_request(setup.out, request)
        outcome = trainer.run(resume=before is not None)
        if outcome.finished and processes.is_main:
            trainer.restore_best()
            rag.model = replace(rag.model, readings=trainer.readings)
            training = _training(setup, options, lora, memory, outcome, num_examples=len(examples))
            _save(rag, setup.out / "model", training, refreshed=options.refresh_every > 0)
    processes.wait()
    return outcome


def _all_of(by_file: Sequence[tuple[Path, tuple[Example, ...]]]) -> tuple[Example, ...]:
    return tuple(example for _, examples in by_file for example in examples)


def _usable(
    path: Path | None,
    examples: tuple[Example, ...],
    rag: Rag,
    setup: Setup,
    options: TrainingOptions,
    say: Callable[[str], None],
) -> tuple[Example, ...]:
    """The examples that the model can read and learn, as ``rows.usable``."""
    return usable(
        examples,
        name=path,
        question=reads(None if options.closed_book else rag.retriever, rag.generator),
        y=rag.generator.targets,
        answers=options.answers,
        truncate=setup.truncate,
        skip_bad=setup.skip_bad,
        say=say,
    )


@torch.no_grad()
def _try_retrieval(retriever: TrainableRetriever, example: Example, options: TrainingOptions) -> None:
    """Retrieve once as training will, for what is refused then. Raises: InputError."""
    retriever.retrieve([example.question], options.k)
    if options.hindsight:
        retriever.retrieve_in_hindsight([example.x], [example.answers[0]], options.k, options.hindsight)


def _free(options: TrainingOptions) -> set[str]:
    """Options that a resumed run need not have begun with: how much memory and disk it takes, and the rate of a side
    that is not trained, which earlier versions wrote as 0."""
    rates = {"lr_retriever": options.trains_retriever, "lr_generator": options.trains_generator}
    return {"micro_batch_size", "save_every", *(name for name, learns in rates.items() if not learns)}


def _keeps_preamble(setup: Setup, options: TrainingOptions, before: Mapping[str, object] | None) -> bool:
    """Training takes the place of the prompt's worked examples, unless the generator is not trained.

    A run that an earlier version began with a frozen generator and without the examples goes on without them.
    """
    if setup.keep_preamble or options.trains_generator:
        return setup.keep_preamble
    return before is None or bool(before["keep_preamble"])


def _training(
    setup: Setup,
    options: TrainingOptions,
    lora: Lora | None,
    memory: Memory | None,
    outcome: Outcome,
    *,
    num_examples: int,
) -> dict[str, object]:
    """How the model was trained, for its card."""
    base = setup.model.generator if isinstance(setup.model, ModelSpec) else setup.model
    best, dev = outcome.best_nll_per_token, setup.dev
    return {
        "base model": Path(base).name,
        "data": f"{', '.join(path.name for path in setup.data)}, {num_examples:,} examples",
        "objective": options.objective,
        "steps": f"{outcome.step:,} of {options.batch_size} examples",
        "trained": {"none": "retriever and generator"}.get(options.freeze, f"all but the {options.freeze}"),
        "adapter": None if lora is None else f"LoRA of rank {lora.rank}, on {lora.scope}",
        "memory": None if memory is None else f"{Path(memory.name).name}, version {memory.version}",
        "passages": None if setup.passages_from is None else "those that come with each question",
        "condition on passages": setup.where,
        "development set": None if dev is None or best is None else f"{dev.name}, {best:.4f} nats per token",
    }


def _save(rag: Rag, folder: Path, training: Mapping[str, object], *, refreshed: bool) -> None:
    generator: Any = rag.generator
    generator.passage_cache = None
    if refreshed:  # the memory's newest version becomes that of the weights that are saved
        retriever: Any = rag.retriever
        retriever.refresh()
    for leftover in folder.parent.glob(f".{folder.name}.saving-*"):  # of a save by 0.1.0 that was killed
        shutil.rmtree(leftover)
    save(rag, folder, training=training)


def _memory(setup: Setup, before: Mapping[str, Any] | None, processes: Processes) -> Memory | None:
    """The memory at the version of the run, the same in all processes; None where passages come with the questions."""
    if setup.passages_from is not None:
        if setup.where is not None:
            raise InputError("--where has no effect, since the passages come with the questions; leave it out")
        if not setup.passages_from.startswith(IDS):
            return None
    version = None if before is None else (before["memory"] or {}).get("version")
    found = memory_at(setup.memory, version=version).snapshot()
    agreed = processes.from_main(lambda: found.version)
    if found.version != agreed:
        found = memory_at(setup.memory, version=agreed).snapshot()
    if not hasattr(found, "card"):
        raise InputError(f"{setup.memory} does not say what encoded it, which a run notes; name a memory in a folder")
    # As far as a run needs one, all of these are memories in a folder, too.
    return cast("Memory", found if setup.where is None else some_of(found, setup.where))


def _num_given(setup: Setup, examples: Sequence[Example]) -> int | None:
    """How many passages come with a question at most; None: none do."""
    return None if setup.passages_from is None else max(len(example.given) for example in examples)


def _examples(path: Path, setup: Setup, say: Callable[[str], None]) -> tuple[Example, ...]:
    """Those of a file that have an answer: a pattern cannot be trained on."""
    examples = read_task(path, setup, passages_from=setup.passages_from, say=say)
    usable = tuple(example for example in examples if example.answers)
    if not usable:
        raise DataError(f"{path} has patterns and no answers; needed rows with an answer to train on")
    if len(usable) < len(examples):
        say(f"warning: {path}: {len(examples) - len(usable)} of {len(examples)} rows have no answer; they are left out")
    return usable


def _model(
    setup: Setup,
    memory: Memory | None,
    num_given: int | None,
    options: TrainingOptions,
    examples: Sequence[Example],
    *,
    device: str,
    keep_preamble: bool,
) -> tuple[Rag, Lora | None]:
    """The model as it is to be trained on these examples, and its adapter's settings."""
    rag = load(
        setup.model,
        memory=setup.memory if memory is None else memory,
        num_given=num_given,
        retriever=setup.retriever,
        reranker=setup.reranker,
        candidates=setup.candidates,
        instruction=setup.instruction,
        template=setup.template,
        null_passage=setup.null_passage,
        set_size=setup.set_size,
        set_bonus=setup.set_bonus,
        rewrites=setup.rewrites,
        neighbours=setup.neighbours,
        variant=options.variant,
        k=options.k,
        device=device,
        encoder_device=setup.encoder_device,
        dtype=setup.dtype,
    )
    generator: Any = rag.generator
    check_trainable(generator)
    causal = generator.capabilities.keeps_prefixes
    size = sum(parameter.numel() for _, parameter in generator.named_parameters())
    rank = setup.lora if setup.lora is not None else (16 if causal and size >= LARGE else 0)
    lora: Lora | None = generator.lora
    if lora is None and rank and options.trains_generator:
        scope: Any = setup.lora_scope or ("question" if causal else "all")
        lora = Lora(rank=rank, alpha=2 * rank, scope=scope)
    _check_used(setup, options, generator, lora)
    whole = options.trains_generator and lora is None
    if whole and setup.dtype == "bfloat16":
        raise InputError(
            "dtype=bfloat16 keeps too few digits for weights that are trained: most steps would not change them; use "
            "--autocast, which computes in bfloat16 with float32 weights, or train an adapter (--lora 16)"
        )
    end: str = getattr(generator.template, "end", None) or ""
    multiline = end != "" and any(end in answer.strip() for each in examples for answer in each.answers)
    generator = generator_for_training(
        generator,
        lora=lora,
        seed=options.seed,
        keep_preamble=keep_preamble,
        whole=whole,
        multiline=multiline and options.trains_generator,
        recompute=setup.recompute,
        passage_cache_bytes=round((2.0 if setup.passage_cache is None else setup.passage_cache) * 2**30),
        passage_cache_in=setup.passage_cache_in,
        passage_cache_folder=setup.passage_cache_folder,
        passage_cache_folder_bytes=round((setup.passage_cache_folder_size or 20.0) * 2**30),
        frozen=not options.trains_generator,
    )
    retriever = retriever_for_training(
        rag,
        setup.model,
        memory,
        options.refresh_every > 0,
        device=setup.encoder_device or device,
        frozen=not options.trains_retriever,
    )
    return with_parts(rag, retriever, generator), lora if options.trains_generator else None


def _check_used(setup: Setup, options: TrainingOptions, generator: Any, lora: Lora | None) -> None:
    """That this generator has a use for every option. Raises: InputError for one that it would ignore."""
    has = generator.lora
    if has is not None and setup.lora not in {None, has.rank}:
        raise InputError(
            f"the model has an adapter of rank {has.rank}, which is what is trained; got --lora {setup.lora}: leave it "
            "out, or train a model without an adapter"
        )
    if has is not None and setup.lora_scope not in {None, has.scope}:
        raise InputError(
            f"the model's adapter has scope {has.scope}; got --lora-scope {setup.lora_scope}: leave it out, or train a "
            "model without an adapter"
        )
    if lora is None and setup.lora_scope is not None:
        raise without_effect("lora_scope", "all weights are trained, not an adapter")
    keeps = isinstance(generator, KeepsPassages) and (
        not options.trains_generator or (lora is not None and lora.scope == "question")
    )
    for name in ("passage_cache", "passage_cache_in", "passage_cache_folder"):
        if getattr(setup, name) not in {None, "ram"} and not keeps:
            raise without_effect(
                name, "training changes how this generator reads passages, or it reads them with the question"
            )
    _check_objective(options, generator)
    template = generator.template
    if setup.keep_preamble and (template is None or template.without_examples() == template):
        raise without_effect("keep_preamble", "the model's prompt has no worked examples")
    if options.autocast and generator.model.dtype == torch.bfloat16:
        raise without_effect("autocast", "the generator's weights are in bfloat16")


def _check_objective(options: TrainingOptions, generator: Any) -> None:
    """Raises: InputError for what needs a generator that decodes step by step."""
    if can_decode(generator):
        return
    if options.label_smoothing:
        raise without_effect("label_smoothing", f"a generator of the kind {generator.kind} has no vocabulary")
    if OBJECTIVES[options.objective].with_reader is not None:
        raise InputError(
            f"objective={options.objective!r} needs a generator that reads all passages together, which one of the "
            f"kind {generator.kind} does not; use nll, pdist or loop"
        )


def _one_or_all(files: list[dict[str, str]]) -> object:
    """A single file without a list around it, as runs of earlier versions have it."""
    return files[0] if len(files) == 1 else files


def _request(
    setup: Setup, options: TrainingOptions, lora: Lora | None, memory: Memory | None, *, keep_preamble: bool
) -> dict[str, object]:
    return {
        "format": checkpoint.FORMAT,
        "options": asdict(options),
        "lora": None if lora is None else json.loads(json.dumps(asdict(lora))),
        "data": _one_or_all([{"name": path.name, "sha256": io.sha256_of_file(path)} for path in setup.data]),
        "dev": None if setup.dev is None else {"name": setup.dev.name, "sha256": io.sha256_of_file(setup.dev)},
        "dev_limit": setup.dev_limit or DEV_LIMIT,
        "prefix_field": setup.prefix_field,
        # None as runs of earlier versions have it.
        "task": None if setup.task == OPEN_QA else setup.task,
        "labels": list(setup.labels) or None,
        "answers_from": setup.answers_from,
        "truncate": setup.truncate or None,
        "passages_from": setup.passages_from,
        "where": setup.where,
        "memory": None
        if memory is None
        else {
            "path": memory.name,
            "version": memory.version,
            "identity": memory.identity,
            "encoder": memory.card.fingerprint,
        },
        "model": {"name": str(setup.model), "files": content_key(setup.model)},
        "retriever": setup.retriever,
        "reranker": None if setup.reranker is None else Path(setup.reranker).name,
        **({} if setup.reranker is None else {"reranker_files": content_key(setup.reranker)}),
        "candidates": setup.candidates,
        "null_passage": setup.null_passage,
        **({} if setup.set_size is None else {"set_size": setup.set_size, "set_bonus": setup.set_bonus}),
        **({} if setup.rewrites is None else {"rewrites": setup.rewrites}),
        **({} if setup.neighbours is None else {"neighbours": setup.neighbours}),
        "keep_preamble": keep_preamble,
        "dtype": setup.dtype,
        "template": prompt_settings(setup.instruction, setup.template).get("template"),
    }
