"""Names of objects: gs://BUCKET/NAME."""

import re

from trackstar.errors import TrackStarError

SCHEME = "gs://"


def split(uri: str) -> tuple[str, str]:
    """Bucket and object name of "gs://bucket/name".

    Raises:
        TrackStarError: no bucket.
    """
    bucket, _, name = uri.removeprefix(SCHEME).partition("/")
    if not re.fullmatch(r"[a-z0-9][-_.a-z0-9]+", bucket):
        raise TrackStarError(f"{uri}: no bucket name; an object-store path is gs://BUCKET/PATH")
    return bucket, name
