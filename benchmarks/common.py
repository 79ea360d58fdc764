"""What the benchmarks share: interleaved timing, a description of the machine, results as JSON and Markdown."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trackstar import fitting
from trackstar.models import LoadedModel
from trackstar.recipes import WHITENING_DAMPING
from trackstar.spec import Spec

RESULTS = Path(__file__).parent / "results"


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, one after the other within a round.

    A machine that others use drifts from minute to minute: only times of one round are comparable.

    Args:
        contestants: What to time, by name.
        rounds: Timed rounds.
        clock: `time.perf_counter`, or `time.process_time` for work of one thread that neighbours interrupt.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            start = clock()
            contestant()
            seconds[name].append(clock() - start)
    return seconds


def ratio(reference: Sequence[float], measured: Sequence[float]) -> float:
    """Best time of the reference ÷ best time of what is measured: what neither lost to the neighbours."""
    return min(reference) / min(measured)


def make_spec(loaded: LoadedModel, **settings: Any) -> Spec:
    """A spec with what all benchmarks that encode take alike, Gaussian projections and neither second moments nor R, unless
    `settings`, the arguments of `trackstar.fitting.make_spec`, say otherwise."""
    alike = {
        "max_length": None,
        "long_documents": "truncate",
        "append_eos": False,
        "batch_tokens": 4096,
        "attributed": "all",
        "layout": "weights",
        "layer_groups": 8,
        "projection": "gaussian",
        "projection_seed": 0,
        "whitening_damping": WHITENING_DAMPING,
        "moments": None,
        "moments_pending": False,
        "factored": False,
        "precondition": False,
        "damping": 0.1,
        "normalisation": "block",
        "stores_text": True,
    }
    return fitting.make_spec(loaded, **{**alike, **settings})


def machine() -> dict[str, str]:
    """Processor, cores and versions, for the head of a report."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers", "numpy")}
    return {
        "processor": name,
        "cores": str(os.cpu_count()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **versions,
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with the first column to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_results(name: str, data: Mapping[str, Any], markdown: str, folder: Path = RESULTS) -> list[Path]:
    """Writes `<name>.json` and `<name>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    for path, text in zip(paths, (json.dumps(data, indent=1), markdown), strict=True):
        path.write_text(text.rstrip() + "\n")
    return paths
