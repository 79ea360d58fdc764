"""How fast per-example projected gradients are collected, against the frozen floor and against bergson 2.5.1.

The frozen floor is the forward pass and the backward pass to the inputs, weights frozen, the graph from the embedding's
output on: what no exact method can go below. Two are timed: with this project's closed-form head in chunks of tokens (the
faster one, and the one that counts), and with the loss as transformers' users write it, through the whole logits.

Models are random GPT-2 and Llama shapes of width 512 with 4 layers. A large vocabulary flatters every ratio, since most of
the time goes into the LM head; the same shapes with 4,096 tokens are the harder case and are timed too.
"""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import interleaved, machine, markdown_table, ratio, write_results
from trackstar.batching import Batch, Example, collate
from trackstar.gradients import GradientEngine, ProjectingSink
from trackstar.models import BlockLayout, LoadedModel, block_layout, prepare_model
from trackstar.projection import projection
from trackstar.second_moments import Exact, Factored, SecondMoments

WIDTH, LAYERS, HEADS, SEED = 512, 4, 8, 0
NATURAL = {"gpt2": 50_257, "llama": 32_000}
SMALL = 4_096
BATCHES = {"8x256": (8, 256), "32x64": (32, 64)}
RIVAL_CASES = (("none", 16), ("none", 64), ("exact", 16))
CASES = (("none", 16), ("none", 64), ("factored", 16), ("factored", 64), ("exact", 16))
MARKS = {("exact", "8x256"): 0.75, ("exact", "32x64"): 0.50}
"""Least ratio to the floor; 0.92 where nothing else is said."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is the same for all contestants of one table row group."""

    model: str
    vocabulary: int
    batch: str
    threads: int


@dataclasses.dataclass
class Prepared:
    """A setting's model, batch and moments."""

    loaded: LoadedModel
    layout: BlockLayout
    batch: Batch
    moments: dict[str, SecondMoments | None]


def make_model(name: str, vocabulary: int) -> LoadedModel:
    """A random model of width 512 and 4 layers."""
    torch.manual_seed(SEED)
    if name == "gpt2":
        config = AutoConfig.for_model("gpt2", vocab_size=vocabulary, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)
    else:
        config = AutoConfig.for_model(
            "llama",
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=1_376,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
        )
    return prepare_model(AutoModelForCausalLM.from_config(config))


def prepare(setting: Setting) -> Prepared:
    """Model, full-width batch of random tokens, and random second moments of each kind."""
    loaded = make_model(setting.model, setting.vocabulary)
    generator = torch.Generator().manual_seed(SEED)
    batch = collate(random_examples(setting.vocabulary, *BATCHES[setting.batch], generator))

    def positive(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).pow(2) * 1e-4 + 1e-8

    weights = loaded.weights
    moments: dict[str, SecondMoments | None] = {
        "none": None,
        "factored": SecondMoments(
            "adafactor", 0.0, {w.name: Factored(positive(w.outputs), positive(w.inputs)) for w in weights}
        ),
        "exact": SecondMoments("adamw", 1e-8, {w.name: Exact(positive(w.outputs, w.inputs)) for w in weights}),
    }
    return Prepared(loaded, block_layout(weights, "blocks", 8), batch, moments)


def random_examples(vocabulary: int, size: int, width: int, generator: torch.Generator) -> list[Example]:
    """Examples of `width` random tokens each."""
    tokens = torch.randint(vocabulary, (size, width), generator=generator).tolist()
    return [Example(str(i), tuple(row)) for i, row in enumerate(tokens)]


class NoSink:
    """Attributes nothing."""

    def begin(self, batch: Batch) -> None:
        """Does nothing."""

    forward = backward = begin


def frozen_floor(loaded: LoadedModel) -> GradientEngine:
    """The engine with nothing to attribute: not one hook on a weight."""
    return GradientEngine(dataclasses.replace(loaded, weights=()), NoSink())  # type: ignore[arg-type]


def plain_floor(prepared: Prepared) -> Callable[[], torch.Tensor]:
    """The frozen floor with cross-entropy over the model's own logits."""
    model, batch = prepared.loaded.model, prepared.batch

    def run() -> torch.Tensor:
        embedded = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]  # [B, T-1, v]
        losses = nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), batch.input_ids[:, 1:].reshape(-1), reduction="none"
        )
        losses.sum().backward()
        return losses.detach().reshape(batch.size, -1).sum(1)

    return run


class Bergson:
    """bergson's own hooks (`GradientCollector`) with this project's projection matrices and second moments.

    Args:
        prepared: Model, batch, moments.
        side: d₀ = d₁.
        kind: "none", "factored" or "exact".
    """

    def __init__(self, prepared: Prepared, side: int, kind: str):
        from bergson import GradientCollector, GradientProcessor
        from bergson.config import IndexConfig
        from bergson.gradients import AdafactorNormalizer, AdamNormalizer
        from datasets import Dataset

        loaded, batch = prepared.loaded, prepared.batch
        moments = prepared.moments[kind]
        by_weight = moments.by_weight if moments else {}
        prefix = loaded.model.base_model_prefix + "."
        self.names = {w.name: w.module.removeprefix(prefix) for w in loaded.weights}
        normalizers: dict[str, Any] = {}
        for parameter, moment in by_weight.items():
            if isinstance(moment, Exact):
                normalizers[self.names[parameter]] = AdamNormalizer(moment.values)
            else:
                normalizers[self.names[parameter]] = AdafactorNormalizer(moment.rows, moment.columns)
        processor = GradientProcessor(normalizers=normalizers, projection_dim=side, projection_type="normal")
        for weight in loaded.weights:
            key = self.names[weight.name]
            left = projection(SEED, weight.name, "left", weight.outputs, side)
            right = projection(SEED, weight.name, "right", weight.inputs, side)
            processor._projection_matrices[key, "left", loaded.device] = left.T.contiguous()
            processor._projection_matrices[key, "right", loaded.device] = right.T.contiguous()
        self.prepared = prepared
        embedding = loaded.model.get_input_embeddings()
        embedding.requires_grad_(True)  # as bergson sets its models up; it reads its type from what can be trained
        self.collector = GradientCollector(
            model=loaded.model.base_model,
            data=Dataset.from_dict({"input_ids": batch.input_ids.tolist()}),
            cfg=IndexConfig(run_path="unused", projection_dim=side, loss_reduction="sum"),
            processor=processor,
            skip_index=True,
        )
        embedding.requires_grad_(False)
        self.floor = frozen_floor(prepared.loaded)
        self.mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
        self.mask[:, -1] = False

    def hooks_only(self) -> None:
        """Its hooks over this project's floor: the best case for it."""
        with self.floor as engine, self.collector.with_batch(self.mask):
            engine.run(self.prepared.batch)

    def as_it_runs(self) -> None:
        """Its hooks with its own forward and backward pass and its own choice of what needs a gradient."""
        from bergson.collector.collector import fwd_bwd_factory

        model, tokens = self.prepared.loaded.model, self.prepared.batch.input_ids
        embedding = model.get_input_embeddings()
        embedding.requires_grad_(True)
        with self.collector.with_batch(self.mask):
            fwd_bwd_factory(self.collector.cfg)(model, tokens, tokens, {})
        embedding.requires_grad_(False)

    def difference(self, encodings: torch.Tensor) -> float:
        """How far its last gradients, summed by block, are from ours [B, blocks, d0, d1], as a share of their norm."""
        expected = torch.zeros_like(encodings)
        for weight, name in self.names.items():
            block = expected[:, self.prepared.layout.block_of[weight]]
            block += self.collector.mod_grads[name].reshape(block.shape)
        return float((encodings - expected).norm() / expected.norm())


def has_bergson() -> bool:
    """Whether bergson is installed in this environment."""
    try:
        import bergson  # noqa: F401
    except ImportError:
        return False
    return True


def arithmetic_seconds(prepared: Prepared, side: int, clock: Callable[[], float]) -> float:
    """Least time for what exact moments add: forming every G_i, G ⊙ D, and (G ⊙ D) R, each at its speed in cache.

    The three are timed one by one on a 256×512 tile.
    """
    size, width = prepared.batch.input_ids.shape
    entries = sum(w.outputs * w.inputs for w in prepared.loaded.weights)
    s, a, gradient = torch.randn(width, 256).T, torch.randn(width, 512), torch.empty(256, 512)
    right, narrow = torch.randn(512, side), torch.empty(256, side)
    scale = torch.ones(256, 512)
    steps: dict[str, Callable[[], Any]] = {
        "form": lambda: torch.mm(s, a, out=gradient),
        "correct": lambda: gradient.mul_(scale),
        "project": lambda: torch.mm(gradient, right, out=narrow),
    }
    repeated = {name: lambda step=step: [step() for _ in range(50)] for name, step in steps.items()}
    best = sum(min(seconds) for seconds in interleaved(repeated, 10, clock).values()) / 50
    return size * entries * best / gradient.numel()


def measure(setting: Setting, rounds: int, rivals: bool) -> dict[str, Any]:
    """Times every contestant of one setting in interleaved rounds; the plain floor and bergson as it runs in one round more."""
    torch.set_num_threads(setting.threads)
    clock = time.process_time if setting.threads == 1 else time.perf_counter
    prepared = prepare(setting)

    def runner(engine: GradientEngine) -> Callable[[], None]:
        def run() -> None:
            with engine:
                engine.run(prepared.batch)

        return run

    floor = runner(frozen_floor(prepared.loaded))
    contestants: dict[str, Callable[[], Any]] = {"floor": floor}
    once: dict[str, Callable[[], Any]] = {"floor": floor, "plain floor": plain_floor(prepared)}
    pairs: dict[str, tuple[ProjectingSink, Bergson]] = {}
    for kind, side in CASES:
        name = f"{kind} {side}"
        sink = ProjectingSink(prepared.loaded.weights, prepared.layout, side, side, SEED, prepared.moments[kind])
        contestants[name] = runner(GradientEngine(prepared.loaded, sink))
        if rivals and (kind, side) in RIVAL_CASES:
            bergson = Bergson(prepared, side, kind)
            pairs[name] = sink, bergson
            contestants[f"bergson {name}"] = bergson.hooks_only
            if side == 16:
                once[f"bergson {name}"] = bergson.as_it_runs
    floor()  # the first pass of all fills the caches
    seconds = interleaved(contestants, rounds, clock)
    differences = {name: bergson.difference(sink.encodings) for name, (sink, bergson) in pairs.items()}
    return {
        **dataclasses.asdict(setting),
        "clock": clock.__name__,
        "seconds": seconds,
        "seconds_once": interleaved(once, 1, clock),
        "arithmetic_seconds": arithmetic_seconds(prepared, 16, clock),
        "difference_from_bergson": differences,
    }


def report(results: list[dict[str, Any]], rounds: int) -> str:
    """The tables in Markdown, with what misses its mark."""
    names = [f"{kind} {side}" for kind, side in CASES]
    ours, theirs, misses = [], [], []
    for result in results:
        seconds = result["seconds"]
        floor, once = seconds["floor"], result["seconds_once"]
        setting = [result["model"], f"{result['vocabulary']:,}", result["batch"], str(result["threads"])]
        ratios = {name: ratio(floor, seconds[name]) for name in names}
        ceiling = min(floor) / (min(floor) + result["arithmetic_seconds"])
        ours.append(
            [
                *setting,
                f"{min(floor):.3f} s",
                f"{ratio(once['floor'], once['plain floor']):.2f}",
                *(f"{ratios[name]:.3f}" for name in names),
                f"{ceiling:.3f}",
            ]
        )
        if result["difference_from_bergson"]:
            row: list[object] = [*setting]
            for kind, side in RIVAL_CASES:
                name = f"{kind} {side}"
                row += [f"{ratios[name]:.3f}", f"{ratio(floor, seconds[f'bergson {name}']):.3f}"]
                if side == 16:
                    row.append(f"{ratio(once['floor'], once[f'bergson {name}']):.3f}")
                if ratios[name] <= ratio(floor, seconds[f"bergson {name}"]):
                    misses.append(f"{' '.join(setting)}: {name} not ahead of bergson's hooks")
            theirs.append(row)
        for kind, side in CASES if result["vocabulary"] != SMALL else ():
            mark, name = MARKS.get((kind, result["batch"]), 0.92), f"{kind} {side}"
            if ratios[name] < mark:
                misses.append(f"{' '.join(setting)}: {name} at {ratios[name]:.3f}, mark {mark}")
    header = ["model", "vocabulary", "batch", "threads"]
    text = [
        "# Encoding",
        f"`python -m benchmarks.encoding --rounds {rounds}`; width {WIDTH}, {LAYERS} layers, float32. "
        + ", ".join(f"{key} {value}" for key, value in machine().items()),
        "Time of the frozen floor ÷ time of per-example projected gradients, best of interleaved rounds: 1 is as fast as the "
        "floor. The floor is the forward pass and the backward pass to the inputs with this project's closed-form head; the "
        "plain floor is the same with cross-entropy over the model's own logits. The last column is the floor that the "
        "arithmetic of exact moments sets: forming, dividing and projecting every gradient at its speed in cache. One thread "
        "is timed in processor time, two by the clock. A large vocabulary flatters the ratios, since most of the time goes "
        "into the LM head: 4,096 tokens are the harder case, and stand beside without a mark.",
        markdown_table([*header, "floor", "plain floor", *names, "exact, ceiling"], ours),
    ]
    if theirs:
        versus = []
        for kind, side in RIVAL_CASES:
            versus += [f"{kind} {side}: ours", "bergson's hooks"] + (["bergson as it runs"] if side == 16 else [])
        text += [
            "## Against bergson 2.5.1",
            "The same batches, projections and second moments in the same process; its gradients, summed by block, differ from "
            "ours by at most "
            f"{max(max(r['difference_from_bergson'].values(), default=0.0) for r in results):.0e} "
            "of their norm. *Hooks*: its collector over this project's floor, the best case for it. *As it runs*: its collector "
            "with its own forward and backward pass, which also takes the embedding's gradient, and with it "
            "the tied head's (one round).",
            markdown_table([*header, *versus], theirs),
        ]
    text.append("Every mark is met." if not misses else "Missed:\n\n" + "\n".join(f"- {miss}" for miss in misses))
    return "\n\n".join(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=list(NATURAL), default=list(NATURAL), help="shapes")
    parser.add_argument("--batches", nargs="+", choices=list(BATCHES), default=list(BATCHES), help="examples x tokens")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="threads (default: 1 2)")
    parser.add_argument("--vocabularies", nargs="+", choices=["natural", "small"], default=["natural", "small"])
    parser.add_argument("--without_bergson", action="store_true", help="leave bergson out although it is installed")
    parser.add_argument("--name", default="encoding", help="name of the result files")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; a quarter of an hour on two quiet cores, five minutes with `--rounds 1`."""
    options = parse_arguments(arguments)
    rivals = has_bergson() and not options.without_bergson
    if not rivals:
        print("bergson is not timed: pip install 'bergson==2.5.1' and then pip uninstall torchvision torchaudio")
    results = []
    for threads, vocabulary, model, batch in itertools.product(
        options.threads, options.vocabularies, options.models, options.batches
    ):
        setting = Setting(model, NATURAL[model] if vocabulary == "natural" else SMALL, batch, threads)
        results.append(measure(setting, options.rounds, rivals and vocabulary == "natural"))
        seconds = results[-1]["seconds"]
        line = {name: round(ratio(seconds["floor"], values), 3) for name, values in seconds.items()}
        print(dataclasses.asdict(setting), line, flush=True)
        # Written after each setting: a run that is cut short leaves what it measured.
        markdown = report(results, options.rounds)
        paths = write_results(
            options.name, {"machine": machine(), "rounds": options.rounds, "results": results}, markdown
        )
    print(markdown)
    print("written:", *paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
