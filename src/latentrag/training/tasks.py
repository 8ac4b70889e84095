"""Tasks, in a table: how a row is read, what is decoded, which metrics measure it.

Decoders and metrics are named here and are rows of the tables of ``evaluation.metrics``, which is a room above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentrag.errors import InputError
from latentrag.options import RowOptions
from latentrag.registry import Table
from latentrag.training.data import Examples, read_examples
from latentrag.training.formats import QUESTIONS_AND_ANSWERS
from latentrag.training.labels import Label, with_wordings


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is trained on or measured on. Log p(y|x) of the first answer is measured in every task.

    Attributes:
        formats: of the rows of its files, names in ``training.formats.FORMATS``.
        decoder: how the model answers, a name in ``evaluation.metrics.DECODERS``; None: retrieval alone is measured.
        metrics: names in ``evaluation.metrics.METRICS``.
        labels: of a classification, with the words that the model says for them.
        takes_labels: whether labels may be given. Those of ``labels`` then get other words; a task without labels of
            its own has no others.
        left_out: names of labels whose rows are no part of the task.
        answered: whether a row needs an answer.
    """

    formats: tuple[str, ...]
    decoder: str | None
    metrics: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    takes_labels: bool = False
    left_out: tuple[str, ...] = ()
    answered: bool = True


OPEN_QA = "open-qa"
RETRIEVAL = "retrieval"
_RECALL = ("recall", "unspaced_recall", "title_recall")
_CLASSIFIED = ("accuracy", "macro_f1", "title_recall", "kilt")
_SUPPORTS = Label("SUPPORTS", "true", ("SUPPORT", "SUPPORTED", "true"))
_REFUTES = Label("REFUTES", "false", ("REFUTE", "REFUTED", "CONTRADICT", "false"))
_UNKNOWN = Label("NOT ENOUGH INFO", "unknown", ("NEI", "unknown"))
_CLAIMS = ("claims", "labelled", *QUESTIONS_AND_ANSWERS)

TASKS: Table[Task] = Table(
    "task",
    {
        OPEN_QA: Task(QUESTIONS_AND_ANSWERS, "search", ("exact_match", "f1", *_RECALL, "kilt", "confidence")),
        "abstractive-qa": Task(
            QUESTIONS_AND_ANSWERS, "search", ("rouge_l", "bleu", "bleu_1", "exact_match", "f1", *_RECALL, "kilt")
        ),
        "question-generation": Task(
            ("to-ask",), "search", ("bleu_1", "q_bleu_1", "rouge_l", "distinct_trigrams", "title_recall")
        ),
        "fact-verification-3way": Task(
            _CLAIMS, "choose", _CLASSIFIED, (_SUPPORTS, _REFUTES, _UNKNOWN), takes_labels=True
        ),
        "fact-verification-2way": Task(
            _CLAIMS,
            "choose",
            _CLASSIFIED,
            (_SUPPORTS, _REFUTES),
            takes_labels=True,
            left_out=(_UNKNOWN.name, *_UNKNOWN.also),
        ),
        "yes-no": Task(
            ("labelled", *QUESTIONS_AND_ANSWERS),
            "choose",
            _CLASSIFIED,
            (Label("yes", "yes", ("true", "1")), Label("no", "no", ("false", "0"))),
            takes_labels=True,
        ),
        "classification": Task(
            ("labelled", "claims", *QUESTIONS_AND_ANSWERS), "choose", _CLASSIFIED, takes_labels=True
        ),
        "choice": Task(("choices",), "choose", ("accuracy", "title_recall")),
        RETRIEVAL: Task(
            (*QUESTIONS_AND_ANSWERS, "claims-alone", "queries"), None, (*_RECALL, "ranking"), answered=False
        ),
    },
    group="latentrag.tasks",
)


def read_task(
    path: str | Path,
    options: RowOptions,
    *,
    passages_from: str | None = None,
    formats: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Examples:
    """The examples of a file, read as the task says.

    Args:
        passages_from: as for ``read_examples``.
        formats: in place of the task's.
    Raises: InputError for a task or labels that cannot be; DataError as ``read_examples``, also where no row has one of
        the task's labels.
    """
    task = TASKS[options.task]
    if options.labels and not task.takes_labels:
        raise InputError(f"--label has no effect, since the task {options.task} has no labels; leave it out")
    if options.answers_from is not None and "to-ask" in task.formats:
        raise InputError(
            f"--answers-from has no effect, since the task {options.task} asks the questions; leave it out"
        )
    labels = with_wordings(task.labels, options.labels, task=options.task) if task.takes_labels else ()
    return read_examples(
        path,
        skip_bad=options.skip_bad,
        prefix_field=options.prefix_field,
        formats=task.formats if formats is None else formats,
        labels=labels,
        left_out=task.left_out,
        answers_from=options.answers_from,
        passages_from=passages_from,
        answered=task.answered,
        task=options.task,
        say=say,
    )
