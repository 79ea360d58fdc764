"""Batches: a function of the lengths alone, within the budget, every example once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from trackstar.batching import Example, collate, plan_batches, windows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 300))
def test_plans_hold_every_example_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    assert batches == plan_batches(list(lengths), budget)
    widths = [max(lengths[i] for i in batch) for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_collate_pads_right_and_lists_supervised_tokens() -> None:
    batch = collate([Example("a", (5, 6, 7)), Example("b", (8, 9, 10, 11), first_target=3)], pad_token=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.columns.tolist() == [0, 1, 2]
    assert batch.targets.tolist() == [6, 7, 11]


def test_windows_cut_a_stream() -> None:
    assert list(windows(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(windows(iter([]), 3)) == []
