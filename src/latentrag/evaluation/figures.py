"""Figures as SVG. Needs matplotlib (the extra report)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentrag.errors import ModelError


def pyplot_of_svg() -> Any:
    """matplotlib's pyplot. Raises: ModelError where it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModelError("matplotlib is not installed, and figures need it; install latentrag[report]") from error
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "latentrag"}  # small, and the same every time
    from matplotlib import pyplot

    return pyplot


def label(panel: Any, x: str, y: str) -> None:
    """Names of the axes, and no frame."""
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Any, file: Path) -> None:
    """Into a file, whose folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot_of_svg().close(figure)  # pyplot keeps those that are open


def risk_coverage_curve(points: Sequence[Mapping[str, float]], file: Path, *, by: str) -> None:
    """The share of right answers among the surest ones, over the share that is answered.

    Args:
        points: with coverage and accuracy.
        by: what answers are ordered by, in words.
    """
    pyplot = pyplot_of_svg()
    figure, panel = pyplot.subplots(figsize=(4.5, 3.2))
    coverage = [100 * point["coverage"] for point in points]
    panel.plot(coverage, [100 * point["accuracy"] for point in points], marker="o")
    panel.set_ylim(0, 100)
    label(panel, f"questions answered, % (the surest by {by})", "right, %")
    save(figure, file)
