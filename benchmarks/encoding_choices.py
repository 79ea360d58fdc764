"""How fast documents become stored rows under each choice of encoding, against the frozen floor.

The floor is that of `benchmarks.encoding`: forward pass and backward pass to the inputs with nothing attributed. What is timed
beside it is all that `build-index` does with a batch of tokens but reading and writing: gradients, projections to at most 65,536
numbers, norms, and packing into the stored form. Models and batches are that benchmark's, too; so small a model has few weights,
and with them blocks far wider than a large model's: 48 to 90 a side where a model of 8 billion parameters has 17 to 32.
"""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import interleaved, machine, make_spec, markdown_table, ratio, write_results
from benchmarks.encoding import BATCHES, NATURAL, SEED, SMALL, frozen_floor, make_model, random_examples
from trackstar import whitening
from trackstar.attributed import attributing
from trackstar.batching import collate
from trackstar.covariances import plan_parts, shared_inputs
from trackstar.encoder import Encoder
from trackstar.fitting import stage_spec
from trackstar.models import LoadedModel
from trackstar.recipes import block_shape
from trackstar.sample_sums import sum_covariances
from trackstar.stored_forms import FORMS
from trackstar.tuning.candidates import Family

MARK = 0.88


CHOICES = (
    Family("whitened", storage="sign", attributed="outputs"),
    Family("whitened", storage="sign"),
    Family("whitened", storage="int8"),
    Family("whitened", storage="bfloat16"),
    Family("gaussian", storage="sign"),
)


def label(choice: Family) -> str:
    """For the tables."""
    return f"{choice.projection}, {choice.attributed}, {choice.storage}"


def make_encoder(loaded: LoadedModel, choice: Family, batch_tokens: int) -> Encoder:
    """An encoder without second moments and R; whitened by two examples, which changes no time."""
    chosen = attributing(loaded, choice.attributed)
    rows, columns = block_shape(chosen.weights, choice.layout, 8)
    spec = make_spec(
        loaded,
        max_length=max(width for _, width in BATCHES.values()),
        batch_tokens=batch_tokens,
        attributed=choice.attributed,
        layout=choice.layout,
        block_rows=rows,
        block_columns=columns,
        projection=choice.projection,
        projection_seed=SEED,
        normalisation=choice.normalisation,
        storage=choice.storage,
        stores_text=False,
    )
    if choice.projection == "gaussian":
        return Encoder(loaded, spec, None, None)
    plain = Encoder(loaded, stage_spec(spec, moments=False, projections=False), None, None)
    parts = plan_parts(chosen.weights, shared_inputs(chosen), [])
    few = random_examples(loaded.vocabulary_size, 2, 64, torch.Generator().manual_seed(SEED))
    projections = whitening.whitened(parts, sum_covariances(plain, lambda: few, parts), spec, None)
    spec = dataclasses.replace(spec, projection_fingerprint=projections.fingerprint)
    return Encoder(loaded, spec, None, None, projections)


def measure(model: str, vocabulary: int, batch: str, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of the floor and of every choice, in interleaved rounds."""
    torch.set_num_threads(threads)
    clock: Callable[[], float] = time.process_time if threads == 1 else time.perf_counter
    loaded = make_model(model, vocabulary)
    count, length = BATCHES[batch]
    examples = random_examples(vocabulary, count, length, torch.Generator().manual_seed(SEED))
    collated = collate(examples)

    def floor() -> None:
        with frozen_floor(loaded) as engine:
            engine.run(collated)

    contestants: dict[str, Callable[[], Any]] = {"floor": floor}
    sizes: dict[str, dict[str, int]] = {}
    for choice in CHOICES:
        encoder = make_encoder(loaded, choice, count * length)

        def encode(encoder: Encoder = encoder) -> None:
            encodings, bad = encoder.encode(examples)
            assert not bad
            FORMS[encoder.spec.storage].pack(encodings.vectors)

        contestants[label(choice)] = encode
        sizes[label(choice)] = {
            "blocks": encoder.spec.num_blocks,
            "side": encoder.spec.block_rows,
            "bytes": encoder.spec.bytes_per_encoding,
        }
    for contestant in contestants.values():
        contestant()
    seconds = interleaved(contestants, rounds, clock)
    setting = {"model": model, "vocabulary": vocabulary, "batch": batch, "threads": threads, "clock": clock.__name__}
    return {**setting, "seconds": seconds, "sizes": sizes}


def report(results: list[dict[str, Any]], command: str) -> str:
    """The table in Markdown, with what misses its mark."""
    names = [label(choice) for choice in CHOICES]
    rows: list[list[object]] = []
    missed = []
    for result in results:
        setting = [result["model"], f"{result['vocabulary']:,}", result["batch"], str(result["threads"])]
        ratios = {name: ratio(result["seconds"]["floor"], result["seconds"][name]) for name in names}
        rows.append([*setting, f"{min(result['seconds']['floor']):.3f} s", *(f"{ratios[name]:.3f}" for name in names)])
        if result["vocabulary"] != SMALL:
            missed += [f"{' '.join(setting)}: {name} at {value:.3f}" for name, value in ratios.items() if value < MARK]
    shapes: dict[str, list[str]] = {}
    for result in results:
        for name, size in result["sizes"].items():
            line = f"{size['blocks']}×{size['side']}×{size['side']}, {size['bytes']:,} bytes"
            shapes.setdefault(name, [])
            shapes[name] += [] if f"{result['model']} {line}" in shapes[name] else [f"{result['model']} {line}"]
    text = [
        "# Encoding, by choice",
        f"`{command}`; " + ", ".join(f"{key} {value}" for key, value in machine().items()),
        "Time of the frozen floor ÷ time from tokens to stored rows, best of interleaved rounds. One thread is timed in "
        "processor time, two by the clock. Blocks: "
        + "; ".join(f"{name}: {', '.join(dict.fromkeys(found))}" for name, found in shapes.items())
        + ".",
        markdown_table(["model", "vocabulary", "batch", "threads", "floor", *names], rows),
        f"Mark {MARK}, at the natural vocabularies: "
        + ("met everywhere." if not missed else "missed:\n\n" + "\n".join(f"- {line}" for line in missed)),
    ]
    return "\n\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; three minutes for each of eight settings with one thread."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoding_choices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=list(NATURAL), default=list(NATURAL), help="shapes")
    parser.add_argument("--batches", nargs="+", choices=list(BATCHES), default=list(BATCHES), help="examples x tokens")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="threads (default: 1)")
    parser.add_argument("--vocabularies", nargs="+", choices=["natural", "small"], default=["natural", "small"])
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python -m benchmarks.encoding_choices", *words])
    results = []
    for threads, vocabulary, model, batch in itertools.product(
        options.threads, options.vocabularies, options.models, options.batches
    ):
        tokens = NATURAL[model] if vocabulary == "natural" else SMALL
        results.append(measure(model, tokens, batch, threads, options.rounds))
        # Written after each setting: a run that is cut short leaves what it measured.
        text = report(results, command)
        paths = write_results("encoding_choices", {"machine": machine(), "results": results}, text)
        print(text.splitlines()[-3], flush=True)
    print(text)
    print("written:", *paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
