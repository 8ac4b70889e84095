"""Every option of every command, in every state of a model: it changes something, or it is refused in one line.

docs/options.md shows the same as a table; ``python -m tests.cli.test_options_used`` writes it.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

import latentrag
from latentrag.cli.main import app
from latentrag.generator import CausalGenerator, Lora
from latentrag.rag import Rag
from latentrag.training.loop import Outcome, Trainer
from tests import tiny
from tests.cli.conftest import DOCUMENTS, QUESTION, Ran, cli

TABLE = Path(__file__).parent.parent.parent / "docs" / "options.md"


def flags_of(*names: str) -> set[str]:
    """The options of a command, each by its longest flag."""
    found: Any = typer.main.get_command(app())
    for name in names:
        found = found.commands[name]
    flags = (max(each.opts, key=len) for each in found.params if each.opts[0].startswith("-"))
    return {flag for flag in flags if flag != "--help"}


# train

STATES: Mapping[str, list[str]] = {
    "causal": [],
    "encoder-decoder": ["-m", "encoder-decoder"],
    "adapter": ["-m", "adapter"],
    "--lora": ["--lora", "2"],
    "worked examples": ["-m", "examples"],
    "--freeze generator": ["--freeze", "generator"],
    "--freeze retriever": ["--freeze", "retriever"],
    "bm25": ["--retriever", "bm25"],
    "--closed-book": ["--closed-book"],
    "--objective loop": ["--objective", "loop"],
    "--dev": ["--dev", "data.jsonl"],
    "--steps": ["--steps", "3"],
    "bfloat16": ["--freeze", "generator", "--dtype", "bfloat16"],
    "cache folder": ["--lora", "2", "--passage-cache-folder", "kv"],
}
"""What a run is asked for besides the option in question."""
WHOLE = ("causal", "encoder-decoder", "adapter", "--freeze generator", "--freeze retriever", "--closed-book")
"""Those in which every option is tried; in the others, those that fare otherwise than in the first."""
FROZEN_RETRIEVER = {"--freeze retriever", "bm25", "--closed-book"}
FROZEN_GENERATOR = {"--freeze generator", "bfloat16"}
KEEPS = {"adapter", "--lora", "cache folder", *FROZEN_GENERATOR}
"""Where the generator keeps what it reads of passages."""
REFUSED: Mapping[str, tuple[list[str], set[str]]] = {
    "--lr-retriever": (["0.01"], FROZEN_RETRIEVER),
    "--lr-generator": (["0.01"], FROZEN_GENERATOR),
    "--warmup-retriever": (["1"], FROZEN_RETRIEVER | FROZEN_GENERATOR),
    "--warmup-generator": (["1"], FROZEN_RETRIEVER | FROZEN_GENERATOR),
    "--hindsight": (["1"], FROZEN_RETRIEVER),
    "--hindsight-steps": (["1"], FROZEN_RETRIEVER),
    "--refresh-every": (["1"], FROZEN_RETRIEVER),
    "--objective": (["emdr2"], {"--closed-book"}),
    "--temperature": (["2"], {*STATES} - {"--objective loop"}),
    "--label-smoothing": (["0.1"], {"--objective loop", "--closed-book"}),
    "--closed-book": ([], {"--objective loop", *FROZEN_GENERATOR, "cache folder"}),
    "--where": (["id is not null"], {"--closed-book"}),
    "--epochs": (["3"], {"--steps"}),
    "--eval-every": (["1"], {*STATES} - {"--dev"}),
    "--dev-limit": (["1"], {*STATES} - {"--dev"}),
    "--lora": (["3"], {"adapter", *FROZEN_GENERATOR}),
    "--lora-scope": (["all"], {*STATES} - {"--lora"}),
    "--recompute": ([], FROZEN_GENERATOR),
    "--keep-preamble": ([], {*STATES} - {"worked examples"}),
    "--passage-cache": (["1"], {*STATES} - KEEPS),
    "--passage-cache-folder": (["kept"], {*STATES} - KEEPS),
    "--passage-cache-folder-size": (["1"], {*STATES} - {"cache folder"}),
    "--dtype": (["bfloat16"], {*STATES} - KEEPS),
    "--autocast": ([], {"bfloat16"}),
}
"""Options of `train` that some states have no use for: a value, and these states."""
ALWAYS: Mapping[str, list[str]] = {
    "--variant": ["token"],
    "--passages": ["3"],
    "--freeze": ["retriever"],
    "--steps": ["7"],
    "--batch-size": ["3"],
    "--micro-batch-size": ["1"],
    "--warmup-steps": ["1"],
    "--weight-decay": ["0.5"],
    "--clip": ["0.5"],
    "--answers": ["sample"],
    "--seed": ["5"],
    "--save-every": ["3"],
    "--dev": ["data.jsonl"],
    "--retriever": ["bm25"],
}
"""Options of `train` that change something in any state, with a value that shows it."""
ELSEWHERE = {
    *("--model", "--encoder", "--generator", "--passage-encoder", "--adapter", "--instruction", "--template"),
    *("--generator-kind", "--generator-setting", "--null-passage", "--reranker", "--candidates"),
    *("--set-size", "--set-bonus", "--rewrites", "--neighbours"),
    *("--query-prompt", "--passage-prompt", "--dimension"),
    *("--memory", "--out", "--resume", "--json"),
    *("--device", "--encoder-device", "--passage-cache-in", "--skip-bad", "--truncate", "--prefix-field"),
    *("--task", "--label", "--answers-from", "--passages-from"),
}
"""What every run has, or what depends on the data or the machine; other tests show what they do."""


def test_every_option_of_training_is_looked_at() -> None:
    known = {*REFUSED, *ALWAYS, *ELSEWHERE}
    assert len(known) == len(REFUSED) + len(ALWAYS) + len(ELSEWHERE)
    assert flags_of("train") == known


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, encoder, memory) -> Path:
    """A folder of models, one a kind, and of data."""
    folder = tmp_path_factory.mktemp("states")
    rows: list[dict[str, Any]] = [
        {"question": f"Who wrote {name}?", "answer": ["red", "blue"], "passages": [{"text": "a text"}]}
        for name in DOCUMENTS
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "keys").write_text("a-key-that-may-write write\n")
    rag = latentrag.load(model, memory=memory)
    plain = tiny.causal_of(rag)
    template = replace(plain.template, preamble="the moon is red\n")
    examples = CausalGenerator(plain.model, plain.tokenizer, template=template)
    latentrag.save(Rag(rag.retriever, examples, k=2), folder / "examples")
    adapted = CausalGenerator(plain.model, plain.tokenizer, lora=Lora(rank=2))
    latentrag.save(Rag(rag.retriever, adapted, k=2), folder / "adapter")
    tiny.save_tokenizer(folder / "bart")
    tiny.save_bart(folder / "bart")
    latentrag.save(latentrag.load((encoder, folder / "bart"), memory=memory, k=2), folder / "encoder-decoder")
    return folder


Started = tuple[Ran, dict[str, Any] | None]


@pytest.fixture
def started(place, model, memory, tmp_path, monkeypatch) -> Callable[..., Started]:
    """Starts a run that ends before its first step: what it said, and what it was about to do."""
    monkeypatch.chdir(place)
    seen: list[dict[str, Any]] = []

    def run(trainer: Trainer, **_: Any) -> Outcome:
        generator: Any = trainer.generator
        cache = getattr(generator, "passage_cache", None)
        files = getattr(cache, "_files", None)
        seen.append(
            {
                "request": json.loads((trainer.folder / "run.json").read_text()),
                "trained": sorted(trainer.parameters),
                "format": str({weight.dtype for _, weight in generator.named_parameters()}),
                "settings": json.dumps(generator.settings(), default=str),
                "cache": None if cache is None else (cache.max_bytes, files and (files.folder.name, files.max_bytes)),
                "recomputed": any("forward" in vars(module) for module in generator.model.modules()),
                "dev": len(trainer.dev),
                "retriever": type(trainer.retriever).__name__,
            }
        )
        return Outcome(0, False, None, None, None, None)

    monkeypatch.setattr(Trainer, "run", run)
    number = iter(range(1_000))

    def start(*arguments: str) -> Started:
        usual = ["-m", model, "-i", memory, "-k", 2, "--batch-size", 1, "--out", tmp_path / f"run{next(number)}"]
        seen.clear()
        return cli("train", "data.jsonl", *usual, *arguments), seen[0] if seen else None

    return start


def outcomes(started: Callable[..., Started], state: str, options: Mapping[str, list[str]]) -> dict[str, str]:
    """Whether each of the options is used or refused in a state."""
    _, without = started(*STATES[state])
    assert without is not None
    found = {}
    for flag, value in options.items():
        done, about_to = started(*STATES[state], flag, *value)
        if about_to is None:
            line = done.error()
            assert flag[2:].partition("-")[0] in line, line
        found[flag] = "refused" if about_to is None else "used" if about_to != without else "ignored"
    return found


@pytest.mark.parametrize("state", STATES)
def test_an_option_of_training_is_used_or_refused(started, state) -> None:
    options = {
        flag: value
        for flag, (value, where) in REFUSED.items()
        if flag not in STATES[state] and (state in WHOLE or (state in where) != ("causal" in where))
    }
    found = outcomes(started, state, options)
    assert found == {flag: "refused" if state in REFUSED[flag][1] else "used" for flag in found}


def test_other_options_of_training_are_used(started) -> None:
    assert outcomes(started, "causal", ALWAYS) == dict.fromkeys(ALWAYS, "used")


def test_an_adapter_is_trained_as_it_is_or_not_at_all(started) -> None:
    for refused in (["--lora", "0"], ["--lora", "8"], ["--lora-scope", "all"]):
        assert "adapter" in started("-m", "adapter", *refused)[0].error()
    for same in (["--lora", "2"], ["--lora-scope", "question"]):
        assert started("-m", "adapter", *same)[1] == started("-m", "adapter")[1]


# The other commands

MODELS = ("ask", "score", "eval", "classify")
ASKS = ("ask", "chat", "eval")
PLAIN = "-m encoder-decoder"
DRAWN = ("--temperature 2", "--top-k 2", "--top-p 0.5", "--seed 1")
ENCODING = ("--query-prompt", "--passage-prompt", "--dimension")
CACHES = ("--passage-cache 1GB", "--passage-cache-folder kv")
OF_PASSAGES = ("-k 1", "--as-of 1", "--retriever bm25", "--reranker r", "--candidates 9", "--where id='a'")
OTHERS: list[tuple[str, str, str, list[str]]] = [
    (
        "ask, chat, eval",
        "`--temperature`, `--top-k`, `--top-p`, `--seed`",
        "without `--sample`",
        [f"{command} {flag}" for command in ASKS for flag in DRAWN],
    ),
    (
        "ask, chat, eval",
        "`--length-penalty`",
        "with `--sample`",
        [f"{each} --length-penalty 1 --sample" for each in ASKS],
    ),
    (
        "ask, chat, eval",
        "`--decoding` thorough, fast",
        "with `--sample`; with `--variant token`",
        [f"{each} --decoding fast {more}" for each in ASKS for more in ("--sample", "--variant token")],
    ),
    (
        "ask, chat",
        "options of model, memory and place: `--model`, `--memory`, `--encoder`, `--device`, …",
        "with `--server`",
        [f"{each} --server http://127.0.0.1:9 --device cpu" for each in ("ask", "chat")],
    ),
    ("eval", "`--best`", "always: the best answer alone is measured", ["eval --best 1"]),
    ("eval", "`--beams`", "with `--sample`: one answer is drawn", ["eval --sample --beams 2"]),
    (
        "eval",
        "`--decoding`, `--beams`, `--sample`, `--max-tokens` and all of decoding",
        "with a `--task` that chooses one of several given texts",
        [
            f"eval --task {task} {more}"
            for task in ("yes-no", "fact-verification-2way", "choice")
            for more in ("--decoding thorough", "--beams 2", "--sample", "--max-tokens 5")
        ],
    ),
    (
        "eval",
        "`-k`, `--as-of`, `--retriever`, `--reranker`, `--candidates`, `--passages-from`, `--where`",
        "with `--closed-book`",
        [f"eval --closed-book {more}" for more in (*OF_PASSAGES, "--passages-from passages")],
    ),
    (
        "eval",
        "`--by`, `--qrels`, `--qrels-out`, `--run-in`, `--run-out`",
        "without `--retrieval-only`",
        [f"eval --{each} passage" for each in ("by", "qrels", "qrels-out", "run-in", "run-out")],
    ),
    (
        "eval",
        "`--variant`, `--decoding`, `--dtype`, `--instruction`, `--template`, `--curve`, `--beams` and all of decoding",
        "with `--retrieval-only`",
        [
            f"eval --retrieval-only --{each}"
            for each in ("variant token", "decoding fast", "dtype int8", "instruction red", "template t", "beams 2")
        ]
        + ["eval --retrieval-only --curve a.svg"],
    ),
    (
        "eval",
        "`-k`, `--as-of`, `--retriever`, `--reranker`, `--candidates`, `--passages-from`, `--where`",
        "with `--run-in`",
        [f"eval --retrieval-only --run-in r {each}" for each in (*OF_PASSAGES, "--passages-from passages")],
    ),
    (
        "ask",
        "`--abstain-below`",
        "a model that is not calibrated, or is for other settings",
        ["ask --abstain-below 0.5"],
    ),
    (
        "calibrate",
        "`--best`, `--sample`, `--task`, `--label`",
        "always: the best answer alone is judged, in open-domain questions",
        [f"calibrate {each}" for each in ("--best 2", "--sample", "--task yes-no", "--label a=b")],
    ),
    (
        "eval, train",
        "`--label`",
        "with a `--task` that has no labels",
        [f"{each} --label yes=red" for each in ("eval", "train")],
    ),
    (
        "eval, train",
        "`--where`",
        "with `--passages-from`",
        [f"{each} --passages-from passages --where id='a'" for each in ("eval", "train")],
    ),
    (
        "eval, train",
        "`--null-passage`",
        "with `--closed-book`, and with `--retrieval-only`",
        [f"{each} --null-passage 1" for each in ("eval --closed-book", "train --closed-book", "eval --retrieval-only")],
    ),
    (
        "eval, train",
        "`--set-size`",
        "with `--closed-book`, and with `--retrieval-only`",
        [f"{each} --set-size 2" for each in ("eval --closed-book", "train --closed-book", "eval --retrieval-only")],
    ),
    (
        "eval, train",
        "`--rewrites`, `--neighbours`",
        "with `--closed-book`, and with `--retrieval-only`",
        [
            f"{each} --{name} 2"
            for name in ("rewrites", "neighbours")
            for each in ("eval --closed-book", "train --closed-book", "eval --retrieval-only")
        ],
    ),
    (
        "eval, train",
        "`--neighbours`",
        "with `--passages-from`",
        [f"{each} --passages-from passages --neighbours 1" for each in ("eval", "train")],
    ),
    (
        "all that take a model",
        "`--set-bonus`",
        "without sets: with `--set-size 1`, or a model that has none",
        [f"{each} --set-bonus 1" for each in (*MODELS, "train")],
    ),
    (
        "serve",
        "`--passage-cache`, `--passage-cache-folder`",
        "encoder-decoder",
        [f"serve --port 0 -m encoder-decoder {more}" for more in CACHES],
    ),
    (
        "serve",
        "`--passage-cache-folder-size`",
        "without `--passage-cache-folder`",
        ["serve --passage-cache-folder-size 1GB"],
    ),
    ("serve", "`--log-questions`", "with `--quiet`", ["serve --log-questions --quiet"]),
    ("serve", "`--allow-writes`", "with API keys", ["serve --allow-writes --api-key-file keys"]),
    (
        "all that take a model",
        "`--passage-cache-in` device",
        "encoder-decoder; `train`: where `--passage-cache` is",
        [f"{each} --passage-cache-in device -m encoder-decoder" for each in (*MODELS, "train")],
    ),
    (
        "all that take a model",
        "`--encoder-device`",
        "with `--retriever bm25`",
        [f"{each} --encoder-device cpu --retriever bm25" for each in (*MODELS, "train")],
    ),
    (
        "all that take a model",
        "`--reranker`, `--candidates`",
        "with a retriever other than hybrid",
        [f"{each} {more}" for each in (*MODELS, "train") for more in ("--reranker r", "--candidates 9")],
    ),
    (
        "train",
        "`--retriever` hybrid, `--reranker`, `--candidates`",
        "with `--closed-book`",
        [f"train --closed-book {more}" for more in ("--retriever hybrid", "--reranker r", "--candidates 9")],
    ),
    ("fit-prior", "`--retriever`", "other than hybrid", ["fit-prior --out o --retriever bm25"]),
    (
        "ask, score, classify, mcp, fit-prior",
        "`--rewrites`",
        "always: their questions have no turns before them",
        [f"{each} --rewrites 2" for each in ("ask", "score", "classify", "mcp", "fit-prior --out o")],
    ),
    (
        "all that take a model",
        "`--model`, `--encoder`, `--generator`, `--passage-encoder`",
        "`-m` with the others; the last without the two before it",
        ["ask --encoder e --generator g", "ask --passage-encoder e"],
    ),
    ("all that take a model", "`--adapter`", "without `--generator`", ["ask --adapter a", "train --adapter a"]),
    (
        "all that take a model",
        "`--generator-kind`, `--generator-setting`",
        "without `--generator`",
        [
            f"{each} {more}"
            for each in (*MODELS, "train")
            for more in ("--generator-kind spans", "--generator-setting a=b")
        ],
    ),
    (
        "all that take a model; `index add`, `index sync`, `index reencode`",
        "`--query-prompt`, `--passage-prompt`, `--dimension`",
        "without `--encoder`; with `--retriever bm25`",
        [
            *(f"{each} {flag} 8" for each in (*MODELS, "train") for flag in ENCODING),
            *(f"index {each} {flag} 8" for each in ("add new.lance .", "sync new.lance .") for flag in ENCODING[1:]),
            *(f"index reencode {flag} 8" for flag in ENCODING[1:]),
            *(f"ask --encoder e --generator g --retriever bm25 {flag} 8" for flag in ENCODING),
        ],
    ),
    (
        "all that take a model",
        "`--instruction`",
        "a generator without a chat template; with `--template`",
        [
            f"{each} --instruction red {more}"
            for each in ("ask", "train")
            for more in ("", "--template t", "-m encoder-decoder")
        ],
    ),
    (
        "index add, index preview, index sync",
        "`--time-limit`, `--memory-limit`",
        "with `--workers 0`",
        [
            *(f"index {each} new.lance . --workers 0 --time-limit 9" for each in ("add", "sync")),
            "index preview . --workers 0 --time-limit 9",
            *(f"index {each} new.lance . --workers 0 --memory-limit 1GB" for each in ("add", "sync")),
            "index preview . --workers 0 --memory-limit 1GB",
        ],
    ),
    (
        "index build",
        "`--max-memory`",
        "with `--index flat`, and with `--index words`",
        [f"index build --index {each} --max-memory 1GB" for each in ("flat", "words")],
    ),
    ("cluster build", "`--actors`", "with `--gpus`", ["cluster build --actors 2 --gpus 1"]),
    ("cluster up", "`--index-folder`", "with `--index flat`", ["cluster up --index flat --index-folder here"]),
    ("index verify", "`--seed`", "with `--sample 0`", ["index verify --sample 0 --seed 1"]),
    ("index prune", "`--keep`, `--older-than`", "together", ["index prune --keep 1 --older-than 1"]),
    ("index tag", "`--remove`", "with a version", ["index tag name 1 --remove"]),
]
"""Commands, their options, where these are refused, and command lines that are. All other options are always used."""
POSITIONS: Mapping[str, list[str]] = {
    "ask": [QUESTION],
    "calibrate": ["questions.jsonl", "--out", "calibrated"],
    "classify": [QUESTION, "a", "b"],
    "eval": ["data.jsonl"],
    "fit-prior": ["data.jsonl"],
    "train": ["data.jsonl", "--out", "run"],
}
LINES = [(line, options) for _, options, _, lines in OTHERS for line in lines]


@pytest.mark.parametrize(("line", "options"), LINES, ids=[line for line, _ in LINES])
def test_options_of_other_commands_are_refused(place, model, memory, monkeypatch, line, options) -> None:
    """For what they are, and not because something else is wrong with the line."""
    monkeypatch.chdir(place)
    command, *rest = arguments = line.split()
    if command == "cluster":
        arguments = [command, rest[0], memory, *(["data.jsonl"] if rest[0] == "build" else []), *rest[1:]]
    elif command != "index":
        models = [] if "-m" in rest else ["-m", model]
        arguments = [command, *POSITIONS.get(command, []), *models, "-i", memory, *rest]
    elif rest[0] not in ("add", "preview", "sync"):
        arguments = [command, rest[0], memory, *rest[1:]]
    before = sorted(place.rglob("*"))
    error = cli(*arguments, stdin='{"x": "who?", "y": "red"}').error()
    assert any(name in error for flag in FLAG.findall(options) for name in names_of(flag)), error
    assert re.search("has no effect|got |is for |needs |takes |has no chat template", error)
    assert sorted(place.rglob("*")) == before


FLAG = re.compile(r"(?<=`)-[-\w]+")


def names_of(flag: str) -> tuple[str, ...]:
    """How a line calls an option: by its flag, its name in Python, or its words."""
    name = flag.lstrip("-").replace("-", "_")
    words = {"query_prompt": "a prompt", "passage_prompt": "a prompt", "passage_cache_in": "a passage cache"}
    return flag, name, words.get(name, name.replace("_", " "))


def commands() -> list[tuple[str, ...]]:
    """All of them."""
    found: Any = typer.main.get_command(app())
    return [
        names
        for name, command in found.commands.items()
        for names in ([(name, each) for each in command.commands] if hasattr(command, "commands") else [(name,)])
    ]


def test_the_table_in_the_docs_has_every_option() -> None:
    """A new option makes this fail: find out where it has no effect, refuse it there, and write the table anew."""
    assert TABLE.read_text("utf-8") == table()


def table() -> str:
    """docs/options.md."""
    training = [f"| option | {' | '.join(map(_shown, STATES))} |", "|---" * (len(STATES) + 1) + "|"]
    for flag, (_, where) in REFUSED.items():
        cells = ["" if flag in STATES[state] else "refused" if state in where else "used" for state in STATES]
        training.append(f"| `{flag}` | {' | '.join(cells)} |")
    others = [f"| {command} | {flags} | {where} |" for command, flags, where, _ in OTHERS]
    rest = [
        f"| {' '.join(names)} | {_listed(sorted(flags_of(*names)))} |" for names in commands() if names != ("train",)
    ]
    tables = ("\n".join(rows) for rows in (training, others, rest))
    return INTRODUCTION.format(_listed([*ALWAYS, *sorted(ELSEWHERE)]), *tables)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_shown, names))


def _shown(name: str) -> str:
    return f"`{name}`" if name.startswith("-") else name


INTRODUCTION = """# Options and models

An option that would change nothing is refused in one line, with exit code 2. This table is made by
`python -m tests.cli.test_options_used`, and tests/cli/test_options_used.py tries every line of it.

## train

Every run uses these: {}.

The columns: a causal generator that is trained whole, an encoder-decoder, a model that has an adapter already, one
whose prompt has worked examples, and a causal generator with the option of the column. "cache folder" is `--lora` with
`--passage-cache-folder`; bfloat16 is `--freeze generator --dtype bfloat16`.

{}

A model with an adapter keeps it: `--lora` and `--lora-scope` are accepted with the adapter's own values only.

## Other commands

| command | option | refused |
|---|---|---|
{}

All options of these commands; but for the lines above each is used:

| command | options |
|---|---|
{}
"""


if __name__ == "__main__":
    TABLE.write_text(table(), "utf-8")
