"""Writes files anew without what was taken down, from the files there are: no model is loaded and no document read."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipelines import runner
from pipelines.elements import OneByOne
from pipelines.progress import Progress, Reporter
from trackstar.corpus import WorkItem
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.removed_items import predecessor, written_without
from trackstar.rewriting import rewrite_item
from trackstar.spec import Spec

_LOGGER = logging.getLogger(__name__)


def rewrite_items(index: Index, items: Sequence[WorkItem], beam_args: Sequence[str]) -> None:
    """Writes the files of those items that are without something and whose older file is there.

    What cannot be copied, because the older file is damaged, is left for the model to encode.
    """
    hit = [item for item in items if item.removed]
    if not hit:
        return
    present = index.existing_keys()
    missing = [item for item in hit if item.key(index.spec.hash) not in present]
    without = written_without(index)
    olds = [(item, predecessor(index, item, present, without)) for item in missing]
    elements = [(item.to_dict(), old) for item, old in olds if old is not None]
    if not elements:
        return
    with Progress(
        "rewriting", len(elements), len(elements), "examples", enabled=runner.is_local(beam_args)
    ) as progress:
        transform = RewriteItems(elements, index.spec.to_json(), index.uri, progress.reporter)
        runner.run_pipeline(lambda pipeline: pipeline | "RewriteItems" >> transform, beam_args)


@dataclasses.dataclass
class RewriteItems(beam.PTransform):
    """Work items with the keys of their older files → files of the index.

    Args:
        elements: `WorkItem`s as dictionaries, each with a key.
        spec_json: The index's spec.
        index_uri: The index.
        reporter: Where progress goes.
    """

    elements: list[tuple[dict[str, Any], str]]
    spec_json: str
    index_uri: str
    reporter: Reporter

    def expand(self, root: Any) -> Any:
        rewrite = RewriteItem(self.spec_json, self.index_uri, self.reporter)
        return root | OneByOne(self.elements) | "RewriteItem" >> beam.ParDo(rewrite)


class RewriteItem(beam.DoFn):
    """Copies what remains of one item's older file into its new one."""

    def __init__(self, spec_json: str, index_uri: str, reporter: Reporter):
        self._spec_json, self._index_uri, self._reporter = spec_json, index_uri, reporter
        self._rewritten = Metrics.counter("trackstar", "num_rewritten_items")

    def setup(self) -> None:
        self._index = Index(self._index_uri, Spec.from_json(self._spec_json))

    def process(self, element: tuple[dict[str, Any], str]) -> Iterator[str]:
        fields, old_key = element
        try:
            file = rewrite_item(self._index, WorkItem.from_dict(fields), old_key)
        except TrackStarError as error:
            _LOGGER.warning("%s; it is encoded anew", error)
            return
        self._rewritten.inc()
        self._reporter.report(file.key, 1, file.num_rows, finished=True)
        yield file.key
