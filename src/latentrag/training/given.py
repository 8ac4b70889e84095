"""Passages that come with a question, as each dataset writes them into its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latentrag.types import Passage

_TEXTS = ("text", "passage_text", "paragraph_text", "contents", "body", "sentences", "snippet")
_MARKS = ("selected", "is_selected", "gold", "is_supporting", "is_gold")
IDS = "id:"
"""Before the name of a field: its values are ids of passages of the memory, or of documents there."""


class NoPassagesError(Exception):
    """Why a value holds no passages."""


def given_passages(value: object, *, name: str) -> tuple[tuple[Passage, ...], tuple[str, ...]]:
    """The passages of a row, and the ids of those that are marked as holding the answer.

    A value is a text, a list of texts, of objects (MS MARCO, MuSiQue, DPR: text or passage_text, title, id) or of pairs
    of a title and sentences (HotpotQA, 2WikiMultihopQA), or an object of lists of these (MS MARCO and HotpotQA as the
    hub has them). Blank ones are left out.

    Args:
        name: of the row; a passage without an id of its own is NAME#0, NAME#1, …
    Raises: NoPassagesError for another value, or none that is not blank.
    """
    found: list[Passage] = []
    marked: list[str] = []
    for number, each in enumerate(_listed(value)):
        id_, title, text, is_marked = _parts(each)
        if text.strip():
            passage = Passage(id_ or f"{name}#{number}", text.strip(), title)
            found.append(passage)
            marked += [passage.id] if is_marked else []
    if not found:
        raise NoPassagesError("no passage that is not blank")
    if len({passage.id for passage in found}) < len(found):
        raise NoPassagesError("two passages have the same id")
    return tuple(found), tuple(marked)


def given_ids(value: object) -> tuple[str, ...]:
    """Ids of passages, each once. Raises: NoPassagesError for what is no text or list of texts."""
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(each, str | int) and not isinstance(each, bool) for each in listed):
        raise NoPassagesError("no ids of passages")
    return tuple(dict.fromkeys(str(each) for each in listed))


def _listed(value: object) -> Sequence[object]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):  # lists side by side
        columns = {name: column for name, column in value.items() if isinstance(column, list)}
        length = max(map(len, columns.values()), default=0)
        return [{name: column[i] for name, column in columns.items() if i < len(column)} for i in range(length)]
    if isinstance(value, list):
        return value
    raise NoPassagesError(f"a {type(value).__name__}" if value is not None else "nothing there")


def _parts(value: object) -> tuple[str, str, str, bool]:
    """Id, title, text and mark of one passage."""
    if isinstance(value, str):
        return "", "", value, False
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return "", value[0], _text(value[1]), False
    if not isinstance(value, Mapping):
        raise NoPassagesError(f"a passage is a {type(value).__name__}, needed text or an object")
    text = next((value[name] for name in _TEXTS if value.get(name) is not None), None)
    id_, title = value.get("id", value.get("_id", "")), value.get("title", "")
    return (
        str(id_) if isinstance(id_, str | int) else "",
        title if isinstance(title, str) else "",
        _text(text),
        any(value.get(name) for name in _MARKS),
    )


def _text(value: object) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return " ".join(each.strip() for each in value)
    if not isinstance(value, str):
        raise NoPassagesError(f"the text of a passage is a {type(value).__name__}")
    return value
