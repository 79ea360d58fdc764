"""Top-k over arrays: the total order, and merging in any way."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.errors import TrackStarError
from trackstar.topk import TopK

Entry = tuple[int, float, str, str, int]  # query, score, id, uri, row

ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([0.0, -0.0, 0.5, -0.5, 0.1, 1e-300]),
        st.sampled_from(["a", "b", "aa", "Z", "é", "\U0001f600", "\uffff", "", "10", "9"]),
        st.sampled_from(["f", "g"]),
        st.integers(0, 2),
    ),
    max_size=40,
)


def _select(entries: list[Entry], k: int, largest: bool) -> TopK:
    uris = sorted({entry[3] for entry in entries}, reverse=True)
    return TopK.select(
        4,
        k,
        largest,
        np.array([entry[0] for entry in entries], np.int64),
        np.array([entry[1] for entry in entries], np.float64),
        pa.array([entry[2] for entry in entries], pa.string()),
        uris,
        np.array([uris.index(entry[3]) for entry in entries], np.int64),
        np.array([entry[4] for entry in entries], np.int64),
    )


def _listed(top: TopK) -> list[list[tuple[float, str, str, int]]]:
    ids = top.example_ids.to_pylist()
    return [
        [(top.scores[i], ids[i], top.uris[top.files[i]], int(top.rows[i])) for i in range(len(top))[top.entries(query)]]
        for query in range(top.num_queries)
    ]


@settings(max_examples=150, deadline=None)
@given(entries=ENTRIES, k=st.integers(1, 6), largest=st.booleans(), data=st.data())
def test_any_way_of_merging_gives_the_sorted_list(
    entries: list[Entry], k: int, largest: bool, data: st.DataObject
) -> None:
    sign = -1 if largest else 1
    expected = [
        sorted((e[1:] for e in entries if e[0] == query), key=lambda e: (sign * e[0], e[1], e[2], e[3]))[:k]
        for query in range(4)
    ]
    whole = _select(entries, k, largest)
    assert _listed(whole) == expected
    shuffled = data.draw(st.permutations(entries))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(entries)), max_size=3)))
    parts = [_select(shuffled[a:b], k, largest) for a, b in zip([0, *cuts], [*cuts, len(entries)], strict=True)]
    parts.append(TopK.empty(4, k, largest))
    merged = TopK.merge(data.draw(st.permutations(parts)))
    assert _listed(merged) == expected
    one_by_one = TopK.empty(4, k, largest)
    for part in parts:
        one_by_one = TopK.merge([part, pickle.loads(pickle.dumps(one_by_one))])
    assert _listed(one_by_one) == expected
    assert one_by_one.scores.tobytes() == merged.scores.tobytes() == whole.scores.tobytes()  # −0.0 is gone


def test_kth_scores() -> None:
    top = _select([(0, 0.5, "a", "f", 0), (0, 0.1, "b", "f", 1), (1, 0.5, "a", "f", 0)], 2, True)
    assert top.kth_scores().tolist() == [0.1, -np.inf, -np.inf, -np.inf]
    assert TopK.empty(1, 2, False).kth_scores().tolist() == [np.inf]
    assert top.queries.tolist() == [0, 0, 1]


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(TrackStarError, match="not finite"):
        _select([(0, float("nan"), "a", "f", 0)], 2, True)
    with pytest.raises(TrackStarError, match="top_k is 0"):
        TopK.empty(3, 0)
    top = TopK.empty(3, 2)
    for other in (TopK.empty(4, 2), TopK.empty(3, 1), TopK.empty(3, 2, largest=False)):
        with pytest.raises(TrackStarError, match="cannot be merged"):
            TopK.merge([top, other])
