"""The demo's results as its page shows them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from trackstar.demo.corpus import read_by_id
from trackstar.results import Ranking, read_results, write_results


def fill_texts(results: Path, folder: Path) -> None:
    """Writes the documents' texts into results that were scored against an index without texts.

    Args:
        results: JSONL; stays as it is where all texts are there.
        folder: What `write_corpus` wrote to.
    """
    found = read_results(str(results))
    texts = read_by_id(folder)
    filled = [
        dataclasses.replace(
            result, proponents=_filled(result.proponents, texts), opponents=_filled(result.opponents, texts)
        )
        for result in found
    ]
    if filled != found:
        write_results(str(results), filled)


def _filled(ranking: Ranking, texts: Mapping[str, str]) -> Ranking:
    """The ranking with texts; its own where it has them."""
    pairs = zip(ranking.texts, ranking.ids, strict=True)
    return dataclasses.replace(ranking, texts=[text or texts.get(example_id, "") for text, example_id in pairs])
