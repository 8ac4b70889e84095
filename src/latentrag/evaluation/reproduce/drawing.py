"""The paper's figures as SVG, from records. Needs matplotlib (the extra report)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrag.evaluation.figures import label, pyplot_of_svg, save
from latentrag.evaluation.reproduce.records import Record
from latentrag.evaluation.reproduce.rows import Row
from latentrag.registry import Table


def curves(row: Row, recorded: Mapping[str, Record], file: Path) -> None:
    """As Figure 3: a panel a measure and one of seconds a question (loading and scoring included), over the number of
    passages; a line for all arms whose names begin alike (``NAME k=…``). Of recall, that at as many passages as are
    read."""
    pyplot = pyplot_of_svg()
    lines: dict[str, list[tuple[int, Record]]] = {}
    for arm, record in recorded.items():
        lines.setdefault(arm.partition(" k=")[0], []).append((int(record.settings["k"]), record))
    figure, panels = pyplot.subplots(1, len(row.measures) + 1, figsize=(4 * (len(row.measures) + 1), 3.2))
    for panel, measure in zip(panels, row.measures, strict=False):
        for name, points in lines.items():
            points.sort(key=lambda point: point[0])
            found = [r.metrics[f"recall@{k}" if measure.startswith("recall@") else measure] for k, r in points]
            means = [100 * each["mean"] for each in found]
            ends = [[100 * abs(each[end] - each["mean"]) for each in found] for end in ("low", "high")]
            panel.errorbar([k for k, _ in points], means, ends, marker="o", capsize=2, label=name)
        label(panel, "passages read", f"{measure.partition('@')[0].replace('_', ' ')}, %")
    for name, points in lines.items():
        panels[-1].plot([k for k, _ in points], [r.seconds / len(r.ids) for _, r in points], marker="o", label=name)
    label(panels[-1], "passages read", "seconds a question, all in all")
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, file)


def posteriors(row: Row, recorded: Mapping[str, Record], file: Path) -> None:
    """As Figure 2: how much each passage carried each generated token; a panel an arm. Passages go by their rank."""
    pyplot = pyplot_of_svg()
    answers = {arm: record.answer for arm, record in recorded.items() if record.answer}
    figure, panels = pyplot.subplots(len(answers), 1, figsize=(9, 2.6 * len(answers)), squeeze=False)
    for (panel,), (arm, answer) in zip(panels, answers.items(), strict=True):
        tokens = [token for token in answer["tokens"] if token["text"].strip()]
        if not tokens:
            panel.set_axis_off()
            panel.set_title(f"{arm}: an empty answer", fontsize=9)
            continue
        shares = [list(column) for column in zip(*(token["posterior"] for token in tokens), strict=True)]
        panel.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        panel.set_xticks(range(len(tokens)), [token["text"] for token in tokens], rotation=45, ha="right", fontsize=8)
        panel.set_yticks(range(len(shares)), [f"passage {k + 1}" for k in range(len(shares))], fontsize=8)
        panel.set_title(arm, fontsize=9)
    figure.suptitle(row.of, fontsize=9)
    save(figure, file)


FIGURES: Table[Any] = Table("figure", {"curves": curves, "posteriors": posteriors})
