"""Formats of rows: what each dataset calls its question, its answers, its labels and its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeGuard

from latentrag.registry import Table

JsonRow = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Fields:
    """What a format has in a row, as it stands there; None: nothing.

    Attributes:
        question: text.
        answers: text or a list of texts; in classification the names of labels.
        title: of the articles that hold the evidence: text, a list of texts, any of which is right, or a list of such
            lists, each of which is enough by itself (KILT's evidence sets).
        pattern: a regular expression that right answers match.
        passages: ids of the passages or documents that hold the evidence, in the same three forms.
        choices: texts of which one is the answer.
        keys: what the row calls the choices ("A"), in their order, by which other answers may name them.
        messages: the turns of a conversation; those before the question, or without one all of them.
    """

    question: object = None
    answers: object = None
    title: object = None
    pattern: object = None
    passages: object = None
    choices: object = None
    keys: object = None
    messages: object = None


Format = Callable[[JsonRow], Fields]


def first_of(found: Iterable[Fields]) -> Fields:
    """Of each field the first that is there."""
    found = list(found)
    names = [field.name for field in fields(Fields)]
    values = {name: next((v for each in found if (v := getattr(each, name)) is not None), None) for name in names}
    return Fields(**values)


def value_at(row: JsonRow, path: str) -> object:
    """The value of a field; "answer.2020" is the field 2020 of the object in the field answer. None: there is none."""
    value: object = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def questions_with(answers: str) -> Format:
    """The format whose answers are in the field of this name."""

    def read(row: JsonRow) -> Fields:
        ids = _first(row, "passage_ids", "relevant")
        turns = _first(row, "messages", "turns")
        return Fields(row.get("question"), row.get(answers), _titles(row), row.get("answer_regex"), ids, messages=turns)

    return read


def kilt(row: JsonRow) -> Fields:
    """KILT's rows (Petroni et al. 2021): each output has an answer, a provenance, or both."""
    listed = row.get("output")
    outputs = [output for output in listed if isinstance(output, dict)] if isinstance(listed, list) else []
    provenance = [output["provenance"] for output in outputs if isinstance(output.get("provenance"), list)]
    answers = [output["answer"] for output in outputs if output.get("answer") is not None]
    return Fields(
        row.get("input"),
        answers or None,
        _sets(provenance, "title") or None,
        passages=_sets(provenance, "wikipedia_id") or None,
    )


def claims(row: JsonRow) -> Fields:
    """Claims with a label: FEVER, FoolMeTwice, SciFact, and KILT's FEVER."""
    return Fields(row.get("claim"), row.get("label"), _titles(row), passages=row.get("evidence_docs"))


def claims_alone(row: JsonRow) -> Fields:
    """Claims without their label: for retrieval, whose answers are texts that a passage may hold."""
    return replace(claims(row), answers=None)


def labelled(row: JsonRow) -> Fields:
    """Texts with a label."""
    return Fields(_first(row, "question", "claim", "text", "sentence", "x"), row.get("label"), _titles(row))


def queries(row: JsonRow) -> Fields:
    """BEIR's queries: an id and a text."""
    return Fields(row.get("text"))


def with_choices(row: JsonRow) -> Fields:
    """Questions with texts to choose from, as ARC, OpenBookQA, HellaSwag, MedQA and RACE have them.

    The answer is a text among them, a key ("B"), or without keys a place, counted from 0. In the fields answerKey and
    answer_idx a key goes before a text.
    """
    question = _first(row, "question", "question_stem", "ctx", "x")
    listed: object = _first(row, "choices", "options", "endings")
    if isinstance(question, Mapping):  # OpenBookQA and ARC have the choices within the question
        listed = question.get("choices") if listed is None else listed
        question = _first(question, "stem", "text")
    keys, texts = _choices(listed)
    field = next((name for name in _ANSWERS if row.get(name) is not None), None)
    answers = None if field is None else row[field]
    wanted = [
        _chosen(answer, keys, texts, key_first=field in _KEYED)
        for answer in (answers if isinstance(answers, list) else [answers])
    ]
    right = [answer for answer in wanted if answer is not None]
    turns = _first(row, "messages", "turns")
    if question is None and field is None and isinstance(turns, list) and turns and isinstance(turns[-1], Mapping):
        last = turns[-1]
        if (
            last.get("role") == "assistant"
            and (said := _chosen(last.get("content"), keys, texts, key_first=False)) is not None
        ):
            turns = [*turns[:-1], {**last, "content": said}]
    return Fields(question, right or None, _titles(row), choices=texts, messages=turns, keys=keys)


def with_answers_from(found: Fields, row: JsonRow, path: str) -> Fields:
    """The fields with the answers of another field, as ``value_at`` finds them; those that name choices mean these."""
    answers = value_at(row, path)
    if isinstance(found.choices, list):
        keys = found.keys if isinstance(found.keys, list) else []
        key_first = path.rpartition(".")[2] in _KEYED
        listed = answers if isinstance(answers, list) else [answers]
        texts = [_chosen(each, keys, found.choices, key_first=key_first) for each in listed]
        # An answer that names none stays as it is, so that the message about it can say which.
        answers = [_spelt(each) if text is None else text for each, text in zip(listed, texts, strict=True)]
        answers = [each for each in answers if each is not None]
    return replace(found, answers=answers, pattern=None)


def questions_to_ask(row: JsonRow) -> Fields:
    """Question generation: x is the answer, of several the first that is not blank, and y the question that has it."""
    found = first_of(FORMATS[name](row) for name in QUESTIONS_AND_ANSWERS)
    listed = found.answers if isinstance(found.answers, list) else [found.answers]
    answer = next((each for each in listed if not isinstance(each, str) or each.strip()), None)
    return replace(found, question=answer, answers=found.question, pattern=None)


def answers_to_find(row: JsonRow) -> Fields:
    """The same rows where passages are looked for: what they should hold is the answer, not the question's text."""
    asked = questions_to_ask(row)
    is_asked = isinstance(asked.answers, str) and asked.answers.strip()
    return replace(asked, answers=asked.question) if is_asked else asked


FORMATS: Table[Format] = Table(
    "row format",
    {
        "plain": questions_with("answer"),
        "dpr": questions_with("answers"),
        "flashrag": questions_with("golden_answers"),
        "score": lambda row: Fields(row.get("x"), row.get("y"), row.get("title")),
        "kilt": kilt,
        "claims": claims,
        "claims-alone": claims_alone,
        "labelled": labelled,
        "choices": with_choices,
        "to-ask": questions_to_ask,
        "to-find": answers_to_find,
        "queries": queries,
    },
    group="latentrag.formats",
)
"""Each takes its fields out of a row. The first format that has a question gives the question, and so on."""

QUESTIONS_AND_ANSWERS = ("plain", "dpr", "flashrag", "score", "kilt")


_ANSWERS = ("answerKey", "answer_idx", "answer", "label", "gold")
_KEYED = ("answerKey", "answer_idx")
_FACT = 3
_WRITTEN = {
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
    "-COLON-": ":",
}


def _first(row: JsonRow, *names: str) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _titles(row: JsonRow) -> object:
    """Sets of titles where the row's evidence has them, else its titles."""
    titles = _first(row, "title", "titles")
    return _sets_of_titles(row.get("evidence"), titles) or titles


def _sets_of_titles(evidence: object, titles: object) -> list[list[str]]:
    """The pages in each set of FEVER's evidence; of other lists, the texts in each.

    Lists of three texts each, unless all of them are among the row's titles, are facts, as 2WikiMultihopQA has them
    (subject, relation, object), and no titles.
    """
    if not isinstance(evidence, list) or not all(isinstance(each, list) for each in evidence):
        return []
    if all(len(each) == _FACT and all(isinstance(text, str) for text in each) for each in evidence):
        known = titles if isinstance(titles, list) else [titles]
        if not all(text in known for each in evidence for text in each):
            return []
    sets = [_pages([each] if _is_quadruple(each) else each) for each in evidence]
    return [each for each in sets if each]


def _pages(evidence_set: Sequence[object]) -> list[str]:
    """The titles of one set, each once."""
    found = [_page(each[2]) if _is_quadruple(each) else each for each in evidence_set]
    return list(dict.fromkeys(title for title in found if isinstance(title, str) and title))


def _is_quadruple(value: object) -> TypeGuard[list[Any]]:
    """Whether it is FEVER's (annotation id, evidence id, page, sentence number); page None: nothing was found."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and isinstance(value[2], str | None)
        and all(isinstance(value[place], int | None) for place in (0, 1, 3))
    )


def _page(name: object) -> object:
    """The title of a page of FEVER, whose names have "_" for spaces and the Penn Treebank's names of brackets."""
    if not isinstance(name, str):
        return None
    name = name.replace("_", " ")
    for written, meant in _WRITTEN.items():
        name = name.replace(written, meant)
    return name


def _sets(provenance: Sequence[Sequence[object]], name: str) -> list[list[object]]:
    """What the origins of each provenance have under this name, without those that have none."""
    origins = [[origin for origin in of_output if isinstance(origin, dict)] for of_output in provenance]
    sets = [[origin[name] for origin in each if isinstance(origin.get(name), str)] for each in origins]
    return [each for each in sets if each]


def _choices(listed: object) -> tuple[list[object], list[object]]:
    """Keys and texts: of {"A": text}, [text], [{"label": "A", "text": text}], {"label": […], "text": […]}."""
    if isinstance(listed, Mapping) and isinstance(listed.get("text"), list):
        texts = list(listed["text"])
        keys = listed.get("label")
        return list(keys) if isinstance(keys, list) else [], texts
    if isinstance(listed, Mapping):
        return list(listed), list(listed.values())
    if not isinstance(listed, list):
        return [], []
    if listed and all(isinstance(each, Mapping) for each in listed):
        return [each.get("label") for each in listed], [each.get("text") for each in listed]
    return [], listed


def _chosen(answer: object, keys: Sequence[object], texts: Sequence[object], *, key_first: bool) -> object:
    """The text that an answer means; None where it means none.

    Keys and answers are compared as texts: 1 and "1" are the same key. Where there are keys, a number is no place, and
    neither is a letter where a key is a letter.
    """
    names = ["" if key is None else str(key) for key in keys]
    if not any(names):
        names = []
    of_key = _of_key(answer, names[: len(texts)], texts)
    if of_key is not None and (key_first or answer not in texts):
        return of_key
    if answer in texts:
        return answer
    if isinstance(answer, str) and len(answer) == 1 and answer.isascii():
        if answer.isalpha():
            place = ord(answer.upper()) - ord("A")
            lettered = any(len(name) == 1 and name.isalpha() for name in names)
            return texts[place] if place < len(texts) and not lettered else None
        answer = int(answer) if answer.isdigit() else None
    if isinstance(answer, int) and not isinstance(answer, bool) and not names and 0 <= answer < len(texts):
        return texts[answer]
    return None


def _of_key(answer: object, names: Sequence[str], texts: Sequence[object]) -> object:
    """The text whose key is the answer, if need be in another case; None: there is none."""
    if not isinstance(answer, str | int) or isinstance(answer, bool):
        return None
    wanted = str(answer)
    exact = (text for name, text in zip(names, texts, strict=False) if name and name == wanted)
    others = (text for name, text in zip(names, texts, strict=False) if name and name.casefold() == wanted.casefold())
    return next(exact, None) or next(others, None)


def _spelt(answer: object) -> object:
    """A number as a text."""
    return str(answer) if isinstance(answer, int) and not isinstance(answer, bool) else answer
