"""The model card that is saved with a model: README.md, as model hubs show it."""

from __future__ import annotations

from collections.abc import Mapping

Facts = Mapping[str, object]


def card(model: Facts, training: Facts | None = None) -> str:
    """Markdown with the fields that hubs read on top.

    Args:
        model: name → value, one line each.
        training: the same of how it was trained, in lines of its own; None: nothing is known.
    """
    lines = ["---", "library_name: latentrag", "tags:", "- retrieval-augmented-generation", "---", ""]
    lines += ["# A model for retrieval-augmented generation", "", *_lines(model), ""]
    if training:
        lines += ["## Training", "", *_lines(training), ""]
    lines += ["## Use", "", "```python", "import latentrag", ""]
    lines += ['rag = latentrag.load("FOLDER", memory="MEMORY")', 'print(rag.answer("…").text)', "```", ""]
    lines += ["Each folder in here is a model in the layout of its own library.", ""]
    return "\n".join(lines)


def _lines(facts: Facts) -> list[str]:
    return [f"- {name}: {' '.join(str(value).split())}" for name, value in facts.items() if value is not None]
