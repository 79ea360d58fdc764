"""A comparison as a picture: PNG or SVG, by matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.evaluation.comparison import FREQUENCY, Comparison, Row
from trackstar.evaluation.intervals import Estimate
from trackstar.evaluation.metrics import MRR, RECALL, TAIL_PATCH, at_k

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (4.6, 3.6)


def plot_format(uri: str) -> str:
    """ "png" or "svg", by the file's ending.

    Raises:
        TrackStarError: another ending, or matplotlib is not installed.
    """
    ending = uri.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    if ending not in ("png", "svg"):
        raise TrackStarError(f"{uri}: the plot's file must end in .png or .svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise TrackStarError(
            f"--plot needs matplotlib, which is not installed ({error}): pip install 'trackstar[evaluation]'"
        ) from error
    return ending


def plot(comparison: Comparison, uri: str) -> None:
    """Draws MRR and Recall@k of each file, MRR by frequency, and tail-patch by k, with their intervals.

    Panels for which there are no figures are left out.
    """
    ending = plot_format(uri)  # before matplotlib, whose absence it explains
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # Without pyplot: no window, no state.

    at = comparison.settings.at
    overall = [method.overall for method in comparison.methods]
    panels: list[tuple[str, str, list[str], list[list[Estimate | None]]]] = []
    names = [MRR, *(at_k(RECALL, k) for k in at)]
    panels.append(("Fact tracing", "", names, [_estimates(row, names) for row in overall]))
    buckets = comparison.groups.get(FREQUENCY, [])
    if len(buckets) > 1:
        by_bucket = [[_of(method.groups[FREQUENCY].get(b), MRR) for b in buckets] for method in comparison.methods]
        panels.append(("MRR by number of documents that state the fact", "gold documents", buckets, by_bucket))
    patched = [at_k(TAIL_PATCH, k) for k in at]
    if any(patched[0] in row for row in overall):
        points = [_estimates(row, patched) for row in overall]
        panels.append(("Tail-patch (percentage points)", "mean over the first k", [str(k) for k in at], points))

    # A fixed salt and no date: equal figures give equal bytes.
    with rc_context({"svg.hashsalt": "trackstar", "font.size": 9}):
        width, height = _PANEL_INCHES
        figure = Figure(figsize=(width * len(panels), height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        labels = [method.run.name for method in comparison.methods]
        for axis, (title, below, ticks, points) in zip(axes, panels, strict=True):
            _draw(axis, title, below, ticks, points, labels)
        handles, shown = axes[0].get_legend_handles_labels()
        figure.legend(handles, shown, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        metadata = {"Date": None} if ending == "svg" else None
        with storage.staged(uri) as path:
            figure.savefig(path, format=ending, dpi=150, metadata=metadata)


def _draw(
    axis: "Axes",
    title: str,
    below: str,
    ticks: Sequence[str],
    points: Sequence[Sequence[Estimate | None]],
    labels: Sequence[str],
) -> None:
    """One panel: at each tick a point with its interval for each file, side by side."""
    step = min(0.15, 0.8 / len(labels))
    for number, (label, of_file) in enumerate(zip(labels, points, strict=True)):
        shift = (number - (len(labels) - 1) / 2) * step
        drawn = [(place + shift, e) for place, e in enumerate(of_file) if e is not None and e.mean is not None]
        means: list[Any] = [estimate.mean for _, estimate in drawn]
        below_mean = [_distance(mean, estimate.low) for mean, (_, estimate) in zip(means, drawn, strict=True)]
        above_mean = [_distance(estimate.high, mean) for mean, (_, estimate) in zip(means, drawn, strict=True)]
        axis.errorbar(
            [place for place, _ in drawn],
            means,
            yerr=[below_mean, above_mean],
            fmt="os^D"[number // 10 % 4],
            markersize=4,
            capsize=2,
            linewidth=1.2,
            color=f"C{number % 10}",
            label=label.lstrip("_") or "_",
        )
    axis.set_title(title)
    axis.set_xlabel(below)
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set_xlim(-0.6, len(ticks) - 0.4)
    if title.startswith("Tail"):
        axis.axhline(0.0, color="0.6", linewidth=0.8)
    else:
        axis.set_ylim(0.0, 1.02)
    axis.grid(axis="y", color="0.9")
    axis.set_axisbelow(True)


def _distance(high: float | None, low: float | None) -> float:
    """Length of one arm of an error bar; none where there is no interval."""
    return 0.0 if high is None or low is None else max(0.0, high - low)


def _estimates(row: Row, names: Sequence[str]) -> list[Estimate | None]:
    return [row.get(name) for name in names]


def _of(row: Row | None, name: str) -> Estimate | None:
    return None if row is None else row.get(name)
