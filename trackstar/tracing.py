"""One index asked many times from one process, in a notebook or behind a server: trace, complete, explain.

    tracer = trackstar.open_index("INDEX", model="CKPT")
    trace = tracer.trace("The capital of France is", "Paris")
    tracer.explain(trace, ranks=[1, 2])

The scan runs in the calling thread; no Beam is loaded.
"""

import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from trackstar import removal, storage, threads
from trackstar.batching import Example
from trackstar.completion import check_unicode, greedy
from trackstar.encoder import Encoder, EncoderSource
from trackstar.errors import TrackStarError
from trackstar.explaining import explain_examples
from trackstar.index import Index, Snapshot
from trackstar.index_scan import OnProgress, check_cancelled, read_ranking, scan_index
from trackstar.kept_files import KeptFiles
from trackstar.models import LoadedModel
from trackstar.queries import QuerySet
from trackstar.query_encoding import TaskPreconditioner, task_preconditioner
from trackstar.removal import Removals
from trackstar.removed_items import load_removals
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.spec import Spec
from trackstar.tokenization import UnusableRecordError
from trackstar.trace import Explanation, RankedExample, Trace, TraceCancelledError, TraceProgress

__all__ = ["Explanation", "RankedExample", "Trace", "TraceCancelledError", "TraceProgress", "Tracer", "open_index"]


@dataclasses.dataclass(frozen=True)
class _State:
    """What a trace reads, fixed while it runs."""

    index: Index
    snapshot: Snapshot


def open_index(
    uri: str | os.PathLike[str],
    model: str | os.PathLike[str] | LoadedModel | None = None,
    device: str = "auto",
    *,
    task_hessian: str = "none",
    task_mixing: float | None = None,
    version: int | None = None,
    threads: int = 0,
    allow_low_coverage: bool = False,
) -> "Tracer":
    """Opens an index for traces from this process. The model is loaded once.

    Args:
        uri: The index, a local folder or gs:// prefix.
        model: Checkpoint folder of the model that the index was made with, or the model itself (`models.prepare_model`). Without
            one the tracer knows the index but cannot trace.
        device: "auto", "cpu" or "cuda[:i]": where the model runs and the index is scanned. A model that is in memory stays where
            it is.
        task_hessian: "none": scores under R_train; the folder of an R_eval, which `trackstar score --keep_task_hessian` keeps; or
            "identity": no preconditioner. One query has no R_eval of its own.
        task_mixing: λ of R = λ R_eval + (1 − λ) R_train; None: by the crossing rule.
        version: Snapshot of the index; None: the last.
        threads: Threads that torch uses in this process; 0: one a core.
        allow_low_coverage: As for `models.load_model`.

    Raises:
        TrackStarError: no index, nothing committed in it, another model, an R_eval that does not fit.
    """
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    return Tracer(os.fspath(uri), model, device, task_hessian, task_mixing, version, threads, allow_low_coverage)


class Tracer:
    """An open index; made by `open_index`, which see. Calls from several threads are safe; the model serves one at a time."""

    def __init__(
        self,
        uri: str,
        model: str | LoadedModel | None,
        device: str,
        task_hessian: str,
        task_mixing: float | None,
        version: int | None,
        num_threads: int,
        allow_low_coverage: bool,
    ):
        if task_hessian == "auto":
            raise TrackStarError(
                "task_hessian 'auto' is R_eval of a set of queries, and a tracer is asked one at a time: give 'none', "
                "'identity', or the folder of an R_eval that `trackstar score --keep_task_hessian DIR` kept"
            )
        index = Index.open(uri)
        self.uri = storage.normalise(uri)
        self.spec: Spec = index.spec
        self._state = _State(index, index.snapshot(version))
        self._files = KeptFiles()
        self._lock = threading.Lock()
        self._known_removals: tuple[tuple[str, ...], Removals] | None = None
        self._encoder: Encoder | None = None
        self._task = TaskPreconditioner(None, None, 0.0)
        threads.use(num_threads)
        if model is not None:
            self._load(model, device, task_hessian, task_mixing, num_threads, allow_low_coverage)

    @property
    def version(self) -> int:
        """The snapshot that is asked."""
        return self._state.snapshot.version

    @property
    def num_examples(self) -> int:
        """Examples in it; those that were taken down count."""
        return self._state.snapshot.num_rows

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        return self._state.snapshot.num_bytes

    @property
    def encoder(self) -> Encoder:
        """The model with all that encodes, under the preconditioner that scores are taken with.

        Raises:
            TrackStarError: the index was opened without a model.
        """
        if self._encoder is None:
            raise TrackStarError(
                f"{self.uri}: opened without a model, so nothing can be encoded: open_index({self.uri!r}, model=CHECKPOINT)"
            )
        return self._encoder

    def refresh(self) -> int:
        """Takes the index's last snapshot; traces that run go on with theirs.

        Returns:
            Its version.

        Raises:
            TrackStarError: the index is gone, or one with another spec has taken its place.
        """
        index = Index.open(self.uri)
        if index.spec.hash != self.spec.hash:
            lines = "\n  ".join(self.spec.differences(index.spec))
            raise TrackStarError(
                f"{self.uri}: an index with other settings has taken this one's place; open it anew (open_index):\n  {lines}"
            )
        state = _State(index, index.snapshot())
        with self._lock:
            self._state = state
            self._files.keep_only(file.uri for file in state.snapshot.files)
        return state.snapshot.version

    def complete(self, prompt: str, max_new_tokens: int = 32, cancel: Callable[[], bool] | None = None) -> str:
        """What the model says after the prompt: at every step its likeliest token.

        Args:
            prompt: Not empty.
            max_new_tokens: Tokens at most; fewer where the model ends its text or its context is full.
            cancel: Asked after every token; says True to stop.

        Returns:
            The completion as it follows on the prompt, with the space between them if there is one: `trace` takes it as a target.

        Raises:
            TrackStarError: an empty prompt, one that fills the context, or a number of tokens that is not positive.
            TraceCancelledError: cancelled.
        """
        if max_new_tokens < 1:
            raise TrackStarError(f"max_new_tokens is {max_new_tokens}; it must be positive")
        completion = greedy(self.encoder, prompt, max_new_tokens, cancel)
        if completion is None:
            raise TraceCancelledError("the completion was cancelled")
        return completion

    def trace(
        self,
        prompt: str,
        target: str,
        top_k: int = 10,
        opponents: bool = False,
        example_id: str | None = None,
        on_progress: OnProgress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Trace:
        """Finds the examples whose gradients are most like the query's, among all of the index, exactly.

        Args:
            prompt: What the model was given; may be empty.
            target: What it said; its loss is differentiated.
            top_k: Proponents, and opponents.
            opponents: Whether to look for the lowest scores too.
            example_id: The query's name; None: a hash of prompt and target.
            on_progress: Told how far it is, in the calling thread.
            cancel: Asked some twenty times a second of scanning; says True to stop.

        Raises:
            TrackStarError: an empty target; prompt and target too long together; top_k not positive; a damaged file.
            TraceCancelledError: cancelled.
        """
        started = time.perf_counter()
        state, encoder = self._state, self.encoder
        settings = ScanSettings(top_k, opponents, device=str(encoder.loaded.device))
        query = Query(example_id or _name(prompt, target), prompt, target)
        removals = self._removals(state.index)
        files = [file for file in state.snapshot.files if file.shard not in removals.shards]
        total = sum(file.num_bytes for file in files)
        tell = on_progress or (lambda progress: None)
        tell(TraceProgress("encoding", 0, total, 0))
        example = self._query_example(prompt, target)
        vectors, loss = self._encode(example)
        check_cancelled(cancel)
        highest, lowest = scan_index(files, vectors, settings, self._task.change, removals, self._files, tell, cancel)
        num_examples = sum(file.num_rows for file in files)
        tell(TraceProgress("reading", total, total, num_examples))
        return Trace(
            query,
            read_ranking(highest),
            () if lowest is None else read_ranking(lowest),
            loss=loss,
            num_target_tokens=example.num_targets,
            version=state.snapshot.version,
            num_examples=num_examples,
            seconds=time.perf_counter() - started,
            scored_with=self._scored_with,
        )

    def explain(
        self,
        trace: Trace,
        ranks: Sequence[int] | int | None = None,
        end: Literal["proponents", "opponents"] = "proponents",
        by_target: bool = True,
        cancel: Callable[[], bool] | None = None,
    ) -> list[Explanation]:
        """Where scores of a trace come from: contributions of tokens, weights and blocks (docs/method.md).

        It takes a pass through the model and back for each example and two for the query, and with `by_target` one forwards for
        each, which is also one for the query and each example.

        Args:
            trace: Made by this tracer, or one like it.
            ranks: From 1; None: all of them.
            end: Which end of the ranking they are of.
            by_target: Whether to say what each token's own loss contributes, too.
            cancel: Asked between the passes; says True to stop.

        Returns:
            One explanation a rank, in the order asked for.

        Raises:
            TrackStarError: a rank that the trace does not have; a trace of another index or preconditioner; an example that was
                taken down since, or whose text is neither in the index nor within reach.
            TraceCancelledError: cancelled.
        """
        if trace.scored_with != self._scored_with:
            raise TrackStarError(
                "the trace was made with another index or preconditioner, whose scores this one cannot explain: trace the query "
                "again with this tracer"
            )
        examples = _of_ranks(trace.proponents if end == "proponents" else trace.opponents, ranks, end)
        removals = self._removals(self._state.index)
        for example in examples:
            if example.shard in removals.shards or removals.covers(example.example_id):
                raise TrackStarError(f"{example.example_id}: was taken down after this trace was made; trace again")
        query = self._query_example(trace.query.prompt, trace.query.target)
        return explain_examples(self.encoder, query, examples, by_target, lambda: check_cancelled(cancel))

    @property
    def _scored_with(self) -> str:
        root = self._task.inverse_root
        sample = b"" if root is None else root.flatten()[:: max(1, root.numel() // 4096)].cpu().numpy().tobytes()
        return f"{self.spec.hash}/{hashlib.sha256(sample).hexdigest()[:16]}"

    def _load(
        self,
        model: str | LoadedModel,
        device: str,
        task_hessian: str,
        task_mixing: float | None,
        num_threads: int,
        allow_low_coverage: bool,
    ) -> None:
        index = self._state.index
        spec = index.spec
        plain = task_hessian == "none" and spec.preconditioner != "none"
        checkpoint = model if isinstance(model, str) else ""
        source = EncoderSource.of_index(
            index.uri, spec, checkpoint, device, num_threads, allow_low_coverage, preconditioned=plain
        )  # the other task Hessians make their own preconditioner
        encoder = source.of_model(model if isinstance(model, LoadedModel) else source.load_model())
        if plain:
            self._task = TaskPreconditioner(encoder.inverse_root, None, 0.0)
        else:
            self._task = task_preconditioner(index, task_hessian, task_mixing)
            encoder.inverse_root = (
                None if self._task.inverse_root is None else self._task.inverse_root.to(encoder.loaded.device)
            )
        self._encoder = encoder

    def _query_example(self, prompt: str, target: str) -> Example:
        """The query's tokens.

        Raises:
            TrackStarError: it cannot be used, or is too long to be used whole.
        """
        tokenization = self.encoder.tokenization
        check_unicode(prompt + target)
        try:
            whole = dataclasses.replace(tokenization, max_length=len(prompt) + len(target) + (1 << 20))
            example = whole.query("", prompt, target)
        except UnusableRecordError as error:
            raise TrackStarError(f"this query cannot be traced: {error}") from error
        count, most = len(example.input_ids), tokenization.max_length
        if count > most:
            raise TrackStarError(
                f"prompt and target have {count:,} tokens, {example.num_targets:,} of them the target's, and the index "
                f"was fitted for {most:,} (max_length): shorten the prompt by {count - most:,} tokens or more"
            )
        return example

    def _encode(self, example: Example) -> tuple[QuerySet, float]:
        """φ of the query, and its loss."""
        projected = self.encoder.project([example])
        for reason in projected.too_large.values():
            raise TrackStarError(f"this query cannot be traced: {reason}; shorten it")
        vectors, norms = self.encoder.finish(projected.gradients)
        norm, loss = float(norms[0]), float(projected.losses[0])
        if not 0.0 < norm < float("inf"):
            raise TrackStarError(f"this query cannot be traced: its gradient has norm {norm} (loss {loss:.6g})")
        return QuerySet(vectors.cpu(), norms.cpu()), loss

    def _removals(self, index: Index) -> Removals:
        """What is taken down by now: asked for every trace, since it counts from the moment it is said."""
        names = tuple(info.uri for info in storage.list(storage.join(index.uri, removal.FOLDER)))
        with self._lock:
            known = self._known_removals
        if known is None or known[0] != names:
            known = names, load_removals(index)
            with self._lock:
                self._known_removals = known
        return known[1]


def _of_ranks(ranked: Sequence[RankedExample], ranks: Sequence[int] | int | None, end: str) -> list[RankedExample]:
    if end not in ("proponents", "opponents"):
        raise TrackStarError(f"end is {end!r}; it must be 'proponents' or 'opponents'")
    if ranks is None:
        return list(ranked)
    wanted = [ranks] if isinstance(ranks, int) else list(ranks)
    for rank in wanted:
        if not 1 <= rank <= len(ranked):
            asked = " (they were not asked for: trace with opponents=True)" if end == "opponents" and not ranked else ""
            raise TrackStarError(
                f"rank {rank}: this trace has {len(ranked)} {end}{asked}; for more, trace with a larger top_k"
            )
    return [ranked[rank - 1] for rank in wanted]


def _name(prompt: str, target: str) -> str:
    return hashlib.sha256(repr((prompt, target)).encode()).hexdigest()[:12]
