"""What one server gives its clients: how much, how many, how long."""

import dataclasses

from trackstar.errors import TrackStarError


def _limit(default: int, text: str) -> int:
    field: int = dataclasses.field(default=default, metadata={"help": text})
    return field


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one server; each field's help is that of its flag.

    Raises:
        TrackStarError: one of them is below 1.
    """

    max_top_k: int = _limit(1000, "proponents that one trace may ask for")
    max_new_tokens: int = _limit(256, "tokens that one completion may have")
    max_ranks: int = _limit(20, "ranks that one explanation may ask for")
    max_queued: int = _limit(32, "traces that may wait for the scan; further ones are told to come again later")
    max_batch: int = _limit(8, "waiting traces that one scan of the index answers together")
    max_history: int = _limit(100, "ended traces that are kept, the oldest are forgotten first")
    max_history_bytes: int = _limit(64 << 20, "bytes of results that are kept, the oldest are forgotten first")
    max_waiting: int = _limit(16, "completions and explanations that may be under way or wait for the model")
    max_streams: int = _limit(64, "clients that may follow traces as events at the same time")
    max_connections: int = _limit(256, "connections at the same time")
    max_body_bytes: int = _limit(256 << 10, "bytes of one request's body")
    trace_seconds: int = _limit(3600, "seconds that one trace may take, waiting not counted")
    model_seconds: int = _limit(120, "seconds that a completion or an explanation may take, waiting included")
    request_seconds: int = _limit(15, "seconds in which a request has to arrive whole")
    write_seconds: int = _limit(30, "seconds for which a client may read nothing of its answer")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise TrackStarError(f"--{field.name} is {getattr(self, field.name)}; it must be at least 1")
