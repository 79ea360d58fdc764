"""Models and retrainings of another folder of the fact-tracing benchmark, copied; that folder is only read."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fact_tracing.gradients import Tell
from benchmarks.fact_tracing.settings import GroundTruth
from trackstar.errors import TrackStarError
from trackstar.small_models import TrainSettings, checkpoint_identity

_RETRAINED = "retrained"


def copy_work(theirs: Path, ours: Path, names: Sequence[str], tell: Tell) -> None:
    """Copies what is there and missing here; rankings are not copied.

    Args:
        theirs: Folder of one size of the benchmark, as `benchmarks/work/fact_tracing/standard`.
        ours: The same here.
        names: Of the corpora.
        tell: Told what is copied.

    Raises:
        TrackStarError: a corpus has no model there.
    """
    for part in (part for name in names for part in (name, f"{name}_truth")):
        if not (theirs / part / "model" / "training.json").exists():
            raise TrackStarError(f"{theirs / part}: no trained model here; is it a folder of benchmarks.fact_tracing?")
        folders = [f for f in sorted((theirs / part).glob("model*")) if (f / "training.json").exists() and not f.suffix]
        for source in folders:
            target = ours / part / source.name
            if not target.exists():
                partial = target.with_name(f"{target.name}.copying")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(source, partial)
                partial.rename(target)
                tell(f"copied {source}")
        files = sorted((theirs / part / _RETRAINED).glob("*.json"))
        missing = [file for file in files if not (ours / part / _RETRAINED / file.name).exists()]
        for file in missing:
            target = ours / part / _RETRAINED / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".copying")
            shutil.copyfile(file, partial)
            partial.rename(target)
        if missing:
            tell(f"copied {len(missing)} files of {theirs / part / _RETRAINED}")


def check_model(checkpoint: Path, texts: Sequence[str], settings: TrainSettings) -> None:
    """That a model need not be trained.

    Raises:
        TrackStarError: the model there is of other texts or another training, or there is none.
    """
    description = checkpoint / "training.json"
    found = json.loads(description.read_text())["identity"] if description.exists() else None
    wanted = checkpoint_identity(texts, settings)
    if found != wanted:
        raise TrackStarError(
            f"{checkpoint}: {'no model is here' if found is None else 'this model is of another corpus or training'} ({found}; "
            f"{wanted} is wanted), and with --reuse none is trained: leave --reuse out to train it"
        )


def truth_settings(truth: GroundTruth) -> dict[str, TrainSettings]:
    """Folder → training, of the models of the smaller corpus."""
    others = {f"model-{seed}": dataclasses.replace(truth.model, seed=seed) for seed in range(1, truth.models)}
    return {"model": truth.model, **others}
