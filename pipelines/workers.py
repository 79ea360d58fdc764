"""What the encoding pipelines share: one encoder a worker process.

This module imports transformers, and so does every process that gets one of these DoFns, before any of its threads loads an
encoder: transformers cannot be imported for the first time by two threads at once.
"""

import time

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from trackstar.encoder import Encoder, EncoderSource


class EncoderDoFn(beam.DoFn):
    """A DoFn whose `encoder` is loaded once a process and shared by all its threads and stages.

    Args:
        source: Where the encoder's parts lie.
    """

    def __init__(self, source: EncoderSource):
        self._source = source
        self._shared = Shared()
        self.encoder: Encoder | None = None
        self._load_milliseconds: int | None = None

    def setup(self) -> None:
        """Loads the encoder, or takes the process's."""
        started = time.monotonic()
        self.encoder = self._shared.acquire(self._source.load, tag=self._source)
        self._load_milliseconds = round(1000 * (time.monotonic() - started))

    def start_bundle(self) -> None:
        """Reports the loading time once; what `setup` counts is lost."""
        if self._load_milliseconds is not None:
            Metrics.distribution("trackstar", "load_model_latency_milli_secs").update(self._load_milliseconds)
            self._load_milliseconds = None

    def loaded(self) -> Encoder:
        """The encoder."""
        assert self.encoder is not None, "setup was not called"
        return self.encoder
