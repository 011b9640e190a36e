"""The results of several checkpoints as Markdown and as a chart: mean, range, and each checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vlkv.eval.chart import COLOURS
from vlkv.eval.layout import as_markdown

Results = dict[tuple[str, float], float]


def settings(results: Mapping[str, Results]) -> Iterator[tuple[str, float, list[float]]]:
    """Returns policy, budget and each checkpoint's share of exact answers, in the order of the first checkpoint."""
    for policy, budget in next(iter(results.values())):
        yield policy, budget, [own[policy, budget] for own in results.values()]


def table(results: Mapping[str, Results]) -> str:
    """Returns a table with one row per setting."""
    header = ["policy", "budget", "mean", "range", *results]
    rows = []
    for policy, budget, shares in settings(results):
        spread = f"{100 * min(shares):.1f}-{100 * max(shares):.1f}%"
        rows.append(
            [
                policy,
                f"{budget:.4g}",
                f"{np.mean(shares):.1%}",
                spread,
                *(f"{100 * share:.1f}" for share in shares),
            ]
        )
    return as_markdown(header, rows)


def chart(results: Mapping[str, Results], path: Path) -> None:
    """Draws a panel per budget and a row per policy: dots for checkpoints, a bar for the range, a line at the mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    found = list(settings(results))
    policies = list(dict.fromkeys(policy for policy, _, _ in found))
    budgets = sorted({budget for _, budget, _ in found if budget < 1}, reverse=True)
    figure = Figure(figsize=(11, 0.62 + 0.44 * len(policies)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(1, len(budgets), sharey=True))
    for axes, budget in zip(panels, budgets, strict=True):
        for row, policy in enumerate(policies):
            own = {share: values for name, share, values in found if name == policy}
            values = [100 * value for value in own.get(budget, own.get(1.0, []))]
            if not values:
                continue
            colour = "#8a94a0" if budget not in own else COLOURS[row % len(COLOURS)]
            axes.plot(
                [min(values), max(values)], [row, row], color=colour, lw=7, alpha=0.22, solid_capstyle="round"
            )
            axes.plot(
                values, [row] * len(values), "o", color=colour, ms=4.5, alpha=0.75, mew=0, clip_on=False
            )
            axes.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=colour, lw=2.4)
        axes.set_title(f"{100 * budget:.4g}% kept", loc="left", fontsize=11, fontweight="bold")
        axes.set_xlim(-3, 103)
        axes.set_xticks([0, 50, 100])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
        axes.grid(axis="x", color="#e3e7eb", lw=0.8)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axes.tick_params(length=0, colors="#3c4858")
        axes.set_axisbelow(True)
    figure.get_layout_engine().set(wspace=0.07)
    panels[0].set_yticks(range(len(policies)), policies)
    panels[0].invert_yaxis()
    figure.savefig(path, format="png")
