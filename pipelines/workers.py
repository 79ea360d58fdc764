"""What the encoding pipelines share: one encoder a worker process, and the flags that say where it comes from."""

import argparse
import dataclasses
import time
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from pipelines import flag_types
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


@dataclasses.dataclass
class OneByOne(beam.PTransform):
    """A source of elements that workers take one at a time, in whatever order they are free.

    Args:
        elements: The elements; small.
    """

    elements: list[Any]

    def expand(self, root: Any) -> Any:
        return root | "Elements" >> beam.Create(self.elements, reshuffle=False) | "ToAnyWorker" >> beam.Reshuffle()


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--model (perhaps not `required`), --device, --threads_per_worker and --allow_low_coverage."""
    text = "checkpoint folder of the model, with its tokenizer"
    group = add_worker_arguments(parser, text, "an encoding", required)
    group.add_argument(
        "--allow_low_coverage",
        action="store_true",
        help="go on where less than half of the non-embedding parameters can be attributed",
    )


def add_worker_arguments(
    parser: argparse.ArgumentParser, model: str, result: str, required: bool = True
) -> argparse._ArgumentGroup:
    """--model, --device and --threads_per_worker.

    Args:
        parser: To add to.
        model: Help of --model.
        result: What another number of threads may change.
        required: Whether --model has to be given.

    Returns:
        The group, for more flags about the model.
    """
    group = parser.add_argument_group("the model")
    group.add_argument("--model", required=required, metavar="CKPT", help=model)
    group.add_argument("--device", default="auto", help="auto, cpu or cuda: where workers run the model")
    group.add_argument(
        "--threads_per_worker",
        type=flag_types.positive,
        default=1,
        metavar="N",
        help=f"threads of torch in each worker; another number may change the last bits of {result}",
    )
    return group
