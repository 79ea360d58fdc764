"""The one exception a user should ever read: it says what is wrong, where, and what to do."""


class TrackStarError(Exception):
    """A problem with the input or the settings; shown without a traceback by the command line."""


class BusyError(TrackStarError):
    """Another run is at the same work: nothing is wrong, and nothing was touched."""


class ShardError(TrackStarError):
    """A corpus shard that cannot be read through; it fails its work item and nothing else.

    Args:
        shard: URI of the shard.
        reason: What is wrong with it, as a clause ("truncated gzip stream at byte 1024").
    """

    def __init__(self, shard: str, reason: str):
        super().__init__(f"{shard}: {reason}")
        self.shard = shard
        self.reason = reason

    def __reduce__(self) -> tuple[type["ShardError"], tuple[str, str]]:
        return (ShardError, (self.shard, self.reason))
