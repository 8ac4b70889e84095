"""A training run from names and settings to a saved model: opens data, memory and model, trains, writes.

OUT/
    run.json          what the run was asked for; a resumed run must be asked for the same
    log.jsonl         a line for every step, evaluation and warning
    step-…/, best-…/  checkpoints (training.checkpoint)
    model/            the trained model, as ``latentrag.load`` reads it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latentrag import assemble, io
from latentrag.assemble import ModelSpec, Source
from latentrag.errors import InputError, TrainingError
from latentrag.training.options import RunOptions, TrainingOptions

if TYPE_CHECKING:
    from latentrag.rag import Rag
    from latentrag.training.data import Example
    from latentrag.training.loop import Outcome, Trainer
    from latentrag.training.processes import Processes

RUN_FILE = "run.json"
FORMAT = 2
LARGE = 100_000_000
"""Parameters from which on a causal generator is trained by an adapter unless told otherwise."""
LORA_RATE, WHOLE_RATE = 2e-4, 3e-5
RETRIEVER_FIRST = 200
"""Steps in which the retriever alone learns from a causal generator, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup(RunOptions):
    """What a run needs besides the training options.

    Attributes:
        data: examples to train on; see ``read_examples``.
        memory: a path or "demo". A run keeps to the version that it began with.
        model: as for ``latentrag.load``.
        retriever: "dense", "bm25", or as the model says.
        choose: options chosen automatically from the model and the memory, in place of their given values.
            "warmup": which side of joint training learns alone at the start. A causal model can read before it is
            trained, and says most clearly which passage helps before it is tuned: the retriever learns first, for
            half of the steps or RETRIEVER_FIRST. An encoder–decoder learns to read first, for a fifth of the steps.
            "hindsight": as many candidates found with y as there are found without, where the retriever learns; where
            it learns alone at the start, only there.
    """

    data: Path
    memory: Source
    model: Source | ModelSpec
    retriever: str | None = None
    choose: Collection[Literal["warmup", "hindsight"]] = ()


def train(
    setup: Setup,
    options: Callable[[int], TrainingOptions] | TrainingOptions,
    *,
    resume: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Train, and if the run ends by itself save the model of its best step under OUT/model.

    Args:
        options: or a function that makes them from the number of examples. A generator's rate of 0 means the usual
            one: 2e-4 for an adapter, 3e-5 for whole models.
        resume: go on from the newest checkpoint in ``setup.out``.
        say: gets lines for the user.
    Raises: InputError for a folder that holds another run; TrainingError, DataError, ModelError, MemoryStoreError.
    """
    from latentrag.training.processes import Processes

    examples = _examples(setup.data, setup, say)
    dev = _examples(setup.dev, setup, say)[: setup.dev_limit] if setup.dev is not None else ()
    chosen = options if not callable(options) else options(len(examples))
    before = _begun(setup.out, resume=resume)
    version = None if before is None else before["memory"]["version"]
    memory = assemble.open_memory(setup.memory, version=version)
    processes = Processes.start(device=setup.device)
    rag, lora = _model(setup, memory, chosen, device=str(processes.device))
    if chosen.lr_generator == 0 and chosen.trains_generator:
        chosen = replace(chosen, lr_generator=LORA_RATE if lora is not None else WHOLE_RATE)
    if "warmup" in setup.choose:
        chosen = _with_warmup(chosen, rag)
    if "hindsight" in setup.choose and chosen.trains_retriever:
        chosen = _with_hindsight(chosen, len(memory))
    if chosen.refresh_every and processes.count > 1:
        raise InputError("refresh_every needs a single process, which re-encodes the memory; start one")
    asked = _record(setup, chosen, lora, memory)
    trainer = _trainer(setup, rag, chosen, examples, dev, processes, progress=progress)
    if before is not None:
        _check_same(before, asked, setup.out)
    with _alone(setup.out) if processes.is_main else nullcontext():
        if before is None and processes.is_main:
            _write(setup.out, asked)
        outcome = trainer.run(resume=before is not None)
        if outcome.finished and processes.is_main:
            trainer.restore_best()
            _save(rag, setup.out / "model", refreshed=chosen.refresh_every > 0)
    processes.wait()
    return outcome


def _trainer(
    setup: Setup,
    rag: Rag,
    options: TrainingOptions,
    examples: Sequence[Example],
    dev: Sequence[Example],
    processes: Processes,
    *,
    progress: bool,
) -> Trainer:
    from latentrag.training.loop import Trainer

    retriever: Any = None if options.closed_book else rag.retriever
    generator: Any = rag.generator
    return Trainer(
        retriever,
        generator,
        examples,
        options=options,
        folder=setup.out,
        dev=dev,
        processes=processes,
        refresher=retriever if options.refresh_every else None,
        progress=progress,
    )


def _save(rag: Rag, folder: Path, *, refreshed: bool) -> None:
    generator: Any = rag.generator
    generator.passage_cache = None
    encoder = None
    if refreshed:  # the memory's newest version becomes that of the weights that are saved
        retriever: Any = rag.retriever
        retriever.refresh()
        encoder = retriever.passage_encoder
    assemble.save(rag, folder, passage_encoder=encoder)


def _examples(path: Path | None, setup: Setup, say: Callable[[str], None]) -> tuple[Example, ...]:
    """Those of a file that have an answer: a pattern cannot be trained on."""
    from latentrag.errors import DataError
    from latentrag.training.data import described, read_examples

    assert path is not None
    found = read_examples(path, skip_bad=setup.skip_bad)
    if found.skipped:
        say(f"warning: {path}: {described(found.skipped, of=len(found) + len(found.skipped))}; they are left out")
    usable = tuple(example for example in found if example.answers)
    if not usable:
        raise DataError(f"{path} has patterns and no answers; needed rows with an answer to train on")
    if len(usable) < len(found):
        say(f"warning: {path}: {len(found) - len(usable)} of {len(found)} rows have no answer; they are left out")
    return usable


def _model(setup: Setup, memory: Any, options: TrainingOptions, *, device: str) -> tuple[Rag, Any]:
    """The model as it is to be trained, and its adapter's settings."""
    from latentrag.generator import CausalGenerator
    from latentrag.generator.lora import Lora

    rag = assemble.load(
        setup.model,
        memory=memory,
        retriever=setup.retriever,
        variant=options.variant,
        k=options.k,
        device=device,
        dtype=setup.dtype,
    )
    generator: Any = rag.generator
    causal = isinstance(generator, CausalGenerator)
    size = sum(parameter.numel() for _, parameter in generator.named_parameters())
    rank = setup.lora if setup.lora is not None else (16 if causal and size >= LARGE else 0)
    lora: Lora | None = generator.lora
    if lora is None and rank and options.trains_generator:
        scope: Any = setup.lora_scope or ("question" if causal else "all")
        lora = Lora(rank=rank, alpha=2 * rank, scope=scope)
    generator = assemble.generator_for_training(
        generator,
        lora=lora,
        seed=options.seed,
        keep_preamble=setup.keep_preamble,
        whole=options.trains_generator and lora is None and setup.dtype == "auto",
        recompute=setup.recompute,
        passage_cache_bytes=round(setup.passage_cache * 2**30),
        passage_cache_folder=setup.passage_cache_folder,
        frozen=not options.trains_generator,
    )
    retriever = assemble.retriever_for_training(rag, setup.model, memory, options.refresh_every > 0, device=device)
    return assemble.with_parts(rag, retriever, generator), lora if options.trains_generator else None


def _with_warmup(options: TrainingOptions, rag: Rag) -> TrainingOptions:
    from latentrag.generator import CausalGenerator

    if not (options.trains_generator and options.trains_retriever):
        return options
    if isinstance(rag.generator, CausalGenerator):
        return replace(options, warmup_retriever=min(options.num_steps // 2, RETRIEVER_FIRST))
    return replace(options, warmup_generator=options.num_steps // 5)


def _with_hindsight(options: TrainingOptions, num_passages: int) -> TrainingOptions:
    """As many as K, in the steps that are asked for, else while the retriever learns alone, else in all."""
    alone = options.warmup_retriever if options.trains_generator else 0
    number = max(0, min(options.k, num_passages - options.k))
    return replace(options, hindsight=number, hindsight_steps=options.hindsight_steps or alone or None)


def _record(setup: Setup, options: TrainingOptions, lora: Any, memory: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "options": asdict(options),
        "lora": None if lora is None else json.loads(json.dumps(asdict(lora))),
        "data": {"name": setup.data.name, "sha256": io.sha256_of_file(setup.data)},
        "dev": None if setup.dev is None else {"name": setup.dev.name, "sha256": io.sha256_of_file(setup.dev)},
        "dev_limit": setup.dev_limit,
        "memory": {"path": memory.name, "version": memory.version, "encoder": memory.card.fingerprint},
        "model": str(setup.model),
        "retriever": setup.retriever,
        "keep_preamble": setup.keep_preamble,
        "dtype": setup.dtype,
    }


def _begun(out: Path, *, resume: bool) -> Mapping[str, Any] | None:
    """What the run in this folder was asked for; None if none has begun there.

    Raises: InputError for a folder that is taken.
    """
    file = out / RUN_FILE
    if not file.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists and is no run of latentrag; name another folder with --out")
        if resume:
            raise InputError(f"no run has begun in {out}; leave --resume out to begin one")
        return None
    if not resume:
        raise InputError(f"{out} holds a run already; go on with it by --resume, or name another folder with --out")
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read ({error}); begin anew in another folder") from error
    if found.get("format") != FORMAT:
        raise TrainingError(f"{file} has format={found.get('format')!r}; this version reads {FORMAT}; begin anew")
    return found


def _check_same(before: Mapping[str, Any], asked: Mapping[str, Any], out: Path) -> None:
    """Raises: InputError if a resumed run is not asked for what it was."""
    for name, value in asked.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            for key in value:
                if old.get(key) != value[key]:
                    _refuse(f"{name}.{key}" if name != "options" else key, old.get(key), value[key], out)
        elif old != value:
            _refuse(name, old, value, out)


def _refuse(name: str, old: object, new: object, out: Path) -> None:
    raise InputError(f"the run in {out} has {name}={old!r}, now asked for {new!r}; resume with what it began with")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """The run's folder, made if need be, for this process only."""
    with ExitStack() as held:
        with _refused_in_one_line(out):
            out.mkdir(parents=True, exist_ok=True)
            alone = held.enter_context(io.exclusive(out))
        if not alone:
            raise InputError(f"the run in {out} is going on in another process; wait for it, or name another folder")
        yield


def _write(out: Path, asked: Mapping[str, Any]) -> None:
    with _refused_in_one_line(out):
        io.write_file(out / RUN_FILE, (json.dumps(asked, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def _refused_in_one_line(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}); name another folder with --out") from error
