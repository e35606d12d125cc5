"""The benchmarks' plots, as SVG files in docs/plots/ that come out the same from the same figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({
    "svg.hashsalt": "skywave", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "white",  # legible on a dark page
})  # fmt: skip

from matplotlib import pyplot  # noqa: E402  after the choice of its output

FOLDER = Path(__file__).parents[1] / "docs/plots"


def stacked(name: str, unit: str, panels: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    """A panel for each ``panels`` title: a bar for each number, made of its parts, which have one colour everywhere."""
    figure, axes = pyplot.subplots(1, len(panels), figsize=(9, 3), sharey=True, layout="constrained")
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        bottom = [0.0] * len(bars)
        labels = [f"{number:,}" for number in bars]
        for part in next(iter(bars.values())):
            heights = [parts[part] for parts in bars.values()]
            axis.bar(labels, heights, bottom=bottom, width=0.6, label=part)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
        axis.bar_label(axis.containers[-1], [f"{top:.2f}" for top in bottom], padding=2)
        axis.set_xlabel(title)
    axes[0].set_ylabel(unit)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    _save(figure, name)


def bars(name: str, title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """A group of horizontal bars for each of ``groups``, on a logarithmic scale; equal labels have equal colours."""
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    figure, axis = pyplot.subplots(figsize=(9, 0.9 + 0.19 * sum(map(len, groups.values()))), layout="constrained")
    ticks, at = [], 0.0
    for group in groups.values():
        ticks.append(at + (len(group) - 1) / 2)
        for label, value in group.items():
            bar = axis.barh(at, value, height=0.9, color=f"C{labels.index(label)}", label=label)
            axis.bar_label(bar, [f"{value:,.0f}"], padding=2)
            at += 1
        at += 0.7
    axis.set_yticks(ticks, list(groups))
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(left=1)
    axis.set_xlabel(unit)
    axis.set_title(title)
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    _save(figure, name)


def _save(figure: pyplot.Figure, name: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    pyplot.close(figure)
