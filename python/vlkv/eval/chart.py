"""A chart of accuracy over budget, one line per policy, with 95% intervals. Needs matplotlib (`vlkv[eval]`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vlkv.eval.summary import Line

COLOURS = ("#0b6e4f", "#d1495b", "#2e6fdb", "#e09f3e", "#7b4fb5", "#3c4858", "#00a5b5", "#a44a3f", "#7a9e2f")
DODGE = 1.008  # shifts intervals at the same budget beside each other
MARKS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_chart(lines: Sequence[Line], title: str, path: Path) -> None:
    """Writes the chart; a policy that keeps everything is a horizontal line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(8.4, 4.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    budgets = sorted({line.budget for line in lines})
    labels = list(dict.fromkeys(line.label for line in lines))
    ends: list[tuple[float, str, str]] = []
    for number, label in enumerate(labels):
        own = sorted((line for line in lines if line.label == label), key=lambda line: line.budget)
        colour = COLOURS[number % len(COLOURS)]
        heights = [100 * line.exact.value for line in own]
        if [line.budget for line in own] == [1.0] and len(budgets) > 1:
            axes.axhline(heights[0], color="#8a94a0", lw=1.2, ls=(0, (4, 3)), zorder=1)
            ends.append((heights[0], label, "#6b7580"))
            continue
        where = [line.budget * DODGE ** (number - len(labels) / 2) for line in own]
        reach = [
            [100 * (line.exact.value - line.exact.low) for line in own],
            [100 * (line.exact.high - line.exact.value) for line in own],
        ]
        axes.errorbar(where, heights, reach, color=colour, fmt="none", elinewidth=1.1, alpha=0.45, zorder=2)
        mark = MARKS[number % len(MARKS)]
        axes.plot(where, heights, color=colour, marker=mark, ms=5.5, lw=1.8, clip_on=False, zorder=3)
        ends.append((heights[-1], label, colour))
    below = [budget for budget in budgets if budget < 1] or budgets
    axes.set_xscale("log")
    axes.set_xlim(min(below) / 1.08, max(below) * 1.06)
    axes.set_ylim(-1, 102)
    axes.set_xticks(below)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
    axes.set_xlabel("share of the prompt's cache that is kept")
    axes.set_ylabel("exact answers")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
    axes.grid(axis="y", color="#e3e7eb", lw=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors="#3c4858")
    for height, (_, label, colour) in zip(spread([end[0] for end in ends]), ends, strict=True):
        axes.annotate(
            label,
            (1.015, (height + 1) / 103),
            xycoords="axes fraction",
            color=colour,
            va="center",
            fontsize=9.5,
            fontweight="bold",
            annotation_clip=False,
        )
    figure.savefig(path, format="png")


def spread(heights: Sequence[float], gap: float = 5.4, most: float = 102.0) -> list[float]:
    """Moves heights apart, in the same order, so that labels do not overlap."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = [0.0] * len(heights)
    least = -gap
    for index in order:
        least = placed[index] = max(heights[index], least + gap)
    limit = most
    for index in reversed(order):
        placed[index] = limit = min(placed[index], limit)
        limit -= gap
    return placed
