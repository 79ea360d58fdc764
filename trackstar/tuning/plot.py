"""Quality against bytes as a picture: PNG or SVG, by matplotlib, the bytes on a logarithmic axis."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trackstar import storage
from trackstar.evaluation.intervals import Estimate
from trackstar.evaluation.plot import plot_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (5.4, 4.2)
_STYLES = ("-", "--", ":")


@dataclasses.dataclass(frozen=True)
class Line:
    """One family of encodings.

    Args:
        label: What the legend calls it.
        points: (bytes of an encoding, quality), by bytes.
    """

    label: str
    points: Sequence[tuple[int, Estimate]]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One measure of quality.

    Args:
        title: What it is.
        lines: The families.
        mark: Bytes at which a line is drawn from top to bottom, for example a budget.
    """

    title: str
    lines: Sequence[Line]
    mark: int | None = None


def curves(panels: Sequence[Panel], uri: str) -> None:
    """Draws the panels side by side with one legend, which is the first panel's.

    Raises:
        TrackStarError: the file ends in neither .png nor .svg, or matplotlib is not installed.
    """
    ending = plot_format(uri)  # before matplotlib, whose absence it explains
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # Without pyplot: no window, no state.

    # A fixed salt and no date: equal figures give equal bytes.
    with rc_context({"svg.hashsalt": "trackstar", "font.size": 9}):
        width, height = _PANEL_INCHES
        lines = max(len(panel.lines) for panel in panels)
        figure = Figure(figsize=(width * len(panels), height + 0.16 * lines / 2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        metadata = {"Date": None} if ending == "svg" else None
        with storage.staged(uri) as path:
            figure.savefig(path, format=ending, dpi=150, metadata=metadata)


def _draw(axis: "Axes", panel: Panel) -> None:
    """One panel: a line a family, with its intervals as a band."""
    for number, line in enumerate(panel.lines):
        drawn = [(num_bytes, estimate) for num_bytes, estimate in line.points if estimate.mean is not None]
        sizes = [num_bytes for num_bytes, _ in drawn]
        means = [estimate.mean or 0.0 for _, estimate in drawn]
        color = f"C{number % 10}"
        axis.plot(
            sizes,
            means,
            color=color,
            linestyle=_STYLES[number // 10 % len(_STYLES)],
            marker="os^D"[number % 4],
            markersize=4,
            linewidth=1.2,
            label=line.label.lstrip("_") or "_",
        )
        bounded = [(size, e.low, e.high) for size, e in drawn if e.low is not None and e.high is not None]
        if bounded:
            axis.fill_between(
                [size for size, _, _ in bounded],
                [low for _, low, _ in bounded],
                [high for _, _, high in bounded],
                color=color,
                alpha=0.12,
                linewidth=0,
            )
    axis.set_xscale("log", base=2)
    ticks = sorted({size for line in panel.lines for size, _ in line.points})
    if ticks:
        powers = [2**power for power in range(ticks[0].bit_length() - 1, ticks[-1].bit_length() + 1)]
        axis.set_xticks(powers, [shown_bytes(power) for power in powers], rotation=45)
    if panel.mark is not None:
        axis.axvline(panel.mark, color="0.5", linewidth=0.8, linestyle=":")
    axis.set_title(panel.title)
    axis.set_xlabel("bytes of an encoding")
    axis.grid(color="0.9")
    axis.set_axisbelow(True)


def shown_bytes(count: int) -> str:
    """ "512 B", "2 KB" (of 1,024 bytes)."""
    return f"{count} B" if count < 1024 else f"{count / 1024:g} KB"
