"""The model of cost against figures worked by hand, and what must hold whatever the figures."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackstar import covariances
from trackstar.cost import model
from trackstar.cost.basis import Basis
from trackstar.cost.model import Estimate, Part, Stage
from trackstar.cost.prices import DataflowPrices, Machine, Prices, StoragePrices
from trackstar.cost.rates import Rates, of_machine, read_rates
from trackstar.cost.shapes import CorpusShape, EncodingShape, ScanShape, StepsShape, WhiteningShape
from trackstar.errors import TrackStarError

# Two weights, 4×3 and 2×5, 7 entries that are not attributed, two blocks of 2×3: d_b = 6, d = 12.
SHAPE = EncodingShape(((4, 3), (2, 5)), 7, 2, 3, 2, "none", True, 24)
SCAN = ScanShape(1e6, 100, 10, 24e6, 50, 20, 2, True)
MACHINE = Machine(
    name="m",
    vcpus=4,
    memory_gib=16,
    price_per_hour=3.0,
    peak_bfloat16=1e12,
    peak_float32=2e11,
    achieved_encode=0.5,
    achieved_scan=0.25,
    achieved_other=0.1,
    store_bytes_per_second=1e9,
    tokenize_bytes_per_second=1e6,
    rescore_numbers_per_second=1e8,
    start_seconds=100,
    spot_per_hour=1.0,
)
PRICES = Prices(
    "here",
    "USD",
    "r",
    "d",
    StoragePrices(0.02, 0.005, 0.0004),
    DataflowPrices(0.05, 0.004, 0.0001, 0.01),
    {"m": MACHINE},
)


def test_encoding_by_hand() -> None:
    assert (SHAPE.parameters, SHAPE.attributed) == (12 + 10 + 7, 12 + 10)
    assert SHAPE.floor_flops(100) == 11_600  # (2 forward + 2 backward) · 29 · 100
    # Lᵀs: 2·4·2 and 2·2·2; Rᵀa: 2·3·3 and 2·5·3; outer products 2·6 each: 46 and 50 a token.
    assert SHAPE.projection_flops(100, 10) == 9_600
    exact = dataclasses.replace(SHAPE, moments="exact")
    # Forming G: 2·(12 + 10) a token. An example: scaling 12 + 10; G R 2·(12·3 + 10·3); Lᵀ(G R) 2·(4·6 + 2·6).
    assert exact.projection_flops(100, 10) == 4_400 + 10 * (22 + 132 + 72)
    assert SHAPE.precondition_flops(10) == 1_440  # 2 · 2 blocks · 36 · 10
    assert dataclasses.replace(SHAPE, preconditioned=False).precondition_flops(10) == 0
    assert SHAPE.encode_flops(100, 10) == 11_600 + 9_600 + 1_440
    assert SHAPE.squares_flops(100, 10) == 11_600 + 2 * 22 * 100 + 2 * 22 * 10
    assert SHAPE.gram_flops(10) == 1_440
    assert SHAPE.gram_bytes == 576  # 8 · 2 · 36
    assert SHAPE.preconditioner_bytes == 864  # 8 + 4 bytes
    assert SHAPE.eigen_flops(1, 1) == 2 * 216 * 11
    assert SHAPE.dimension == 12


def test_whitening_by_hand() -> None:
    """The first weight, 4×3, reads what another of 5 outputs reads; the second, 2×5, forms its gradient."""
    parts = [
        covariances.Part("a", "right", 3, ("a", "b")),
        covariances.Part("a", "left", 4, ("a",)),
        covariances.Part("b", "left", 5, ("b",)),
        covariances.Part("c", "right", 5, ("c",), True),
        covariances.Part("c", "left", 2, ("c",), True),
    ]
    whitening = WhiteningShape.of([parts[:2], parts[2:]], "none")
    assert whitening == WhiteningShape(2, (3, 4, 5), ((2, 5),), (3, 4, 5, 5, 2))
    assert WhiteningShape.of([parts], "factored").roots == (3, 3, 4, 5, 5, 2)
    assert whitening.largest == 5
    assert whitening.sum_bytes == 4 * (9 + 16 + 25 + 4 + 25) == sum(part.num_bytes for part in parts)
    # Two floors; tokens' products 2·(9 + 16 + 25); forming 2·10 a token; an example: scaling 10, products 2·10·(2 + 5).
    assert whitening.floor_flops(SHAPE, 100) == 2 * 11_600
    assert whitening.sum_flops(100, 10) == 100 * 100 + 20 * 100 + 10 * (10 + 140)
    # 9 k³, and two products with 3 columns at most.
    assert whitening.root_flops(SHAPE) == 9 * (27 + 64 + 125 + 125 + 8) + 4 * 3 * (9 + 16 + 25 + 25 + 4)
    assert whitening.largest_root(SHAPE) == pytest.approx((9 * 125 + 4 * 3 * 25) / whitening.root_flops(SHAPE))
    assert SHAPE.projection_bytes == 4 * (4 * 2 + 3 * 3 + 2 * 2 + 5 * 3)
    rates = of_machine(MACHINE, model_bytes=2e9, dtype="bfloat16")
    sample = CorpusShape(items=4, text_bytes=3e6, examples=10, tokens=90, padded_tokens=100)
    stage = model.covariance_stage(SHAPE, whitening, sample, 4, rates)
    seconds = {part.name: part.seconds for part in stage.parts}
    assert seconds["reading and tokenizing"] == pytest.approx(6.0)  # twice
    assert seconds["gradients"] == pytest.approx(2 * 11_600 / 5e11)
    assert seconds["sums of covariances"] == pytest.approx(13_500 / 2e10)  # in float32, whatever the model's type
    assert seconds["model and preconditioner"] == pytest.approx(4.0)  # loaded twice
    assert seconds["sums as files"] == pytest.approx(2 * 7 * 316 / 1e9)  # four, and three of their merging
    assert (stage.kept_bytes, stage.written_bytes) == (0, 7 * 316)
    roots = model.whitening_stage(SHAPE, whitening, rates)
    assert (roots.items, roots.kept_bytes, roots.flops) == (5, 144, whitening.root_flops(SHAPE))
    assert roots.parts[0].seconds == pytest.approx(whitening.root_flops(SHAPE) / 6e9)  # 4 vCPU · 15 GFLOP/s · 0.1
    assert roots.wall_seconds(5) == pytest.approx(roots.machine_seconds(5) * whitening.largest_root(SHAPE))


def test_scan_by_hand() -> None:
    assert SCAN.product_flops(12) == 1.2e9
    assert SCAN.norm_flops(SHAPE) == 1.44e8  # 2 · 10⁶ · 12 · 6
    assert dataclasses.replace(SCAN, changed=False).norm_flops(SHAPE) == 0
    assert SCAN.settlings == 10
    assert dataclasses.replace(SCAN, files=1300).settlings == 30  # 130 files a group: settled after 64, 128 and all
    assert SCAN.rescored_pairs() == pytest.approx(52_000)  # 10 · 50 · 2 · 2.6 · 20
    assert SCAN.weighed_flops(SHAPE) == pytest.approx(2 * 52_000 * 12 * 6)
    assert SCAN.merged_entries() == 20_000
    assert SCAN.shuffle_bytes() == 20_000 * 44
    few = dataclasses.replace(SCAN, rows=50.0)  # five rows a group: none has 20 winners
    assert few.merged_entries() == 10 * 50 * 2 * 5


def test_stages_in_seconds() -> None:
    """Each part is its amount by its rate, on a machine of the table."""
    rates = of_machine(MACHINE, model_bytes=2e9, dtype="bfloat16")
    corpus = CorpusShape(items=7, text_bytes=3e6, examples=1e3, tokens=9e4, padded_tokens=1e5)
    stage = model.encode_stage(SHAPE, corpus, rates)
    seconds = {part.name: part.seconds for part in stage.parts}
    assert seconds["reading and tokenizing"] == pytest.approx(3.0)
    assert seconds["gradients and projections"] == pytest.approx((1e5 * (4 * 29 + 96) + 1e3 * 144) / 5e11)
    assert seconds["writing encodings"] == pytest.approx(24e3 / 1e9)
    assert seconds["model and preconditioner"] == pytest.approx(2.0)
    assert (stage.read_bytes, stage.written_bytes, stage.object_writes) == (3e6, 24e3, 7)
    scan = model.scan_stage(SHAPE, SCAN, rates)
    seconds = {part.name: part.seconds for part in scan.parts}
    assert seconds["reading (longer than the product)"] == pytest.approx(0.024)  # 24 MB at 1 GB/s; the product: 4.8 ms
    assert seconds["norms under the mixed R"] == pytest.approx(1.44e8 / 2e10)
    assert seconds["the same in float64"] == pytest.approx(2 * 52_000 * 72 / 6e9)  # 4 vCPU · 15 GFLOP/s · 0.1
    assert seconds["re-scoring in float64"] == pytest.approx(52_000 * 12 / 1e8)
    slower = dataclasses.replace(rates, scan_flops=1e9)
    assert model.scan_stage(SHAPE, SCAN, slower).parts[0].seconds == pytest.approx(1.2)
    packed = dataclasses.replace(
        SCAN, storage="sign", index_bytes=2e6
    )  # 12 numbers a row at 4 vCPU · 15 G/s, and the product
    seconds = {part.name: part.seconds for part in model.scan_stage(SHAPE, packed, rates).parts}
    assert seconds["unpacking rows"] == pytest.approx(12e6 / 6e10)
    assert seconds["product with all queries"] == pytest.approx(1.2e9 / 2.5e11)
    measured = dataclasses.replace(rates, unpack_numbers=None)  # a calibration's product has it in it
    assert "unpacking rows" not in [part.name for part in model.scan_stage(SHAPE, packed, measured).parts]
    assert model.start_stage(rates, 1).wall_seconds(1) == 100
    assert model.start_stage(rates, 8, 3).machine_seconds(4) == 3 * 4 * 100  # three jobs, each with machines of its own
    assert model.start_stage(Rates("here", start_seconds=5), 8, 3).wall_seconds(1) == 5
    steps = model.steps_stage(1000, StepsShape(10, 200, 300, 4), rates)
    assert steps.flops == 6 * 1000 * 200 + 2 * 1000 * 300 + 20 * 1000 * 10
    assert model.commit_stage(1000, rates).wall_seconds(8) == pytest.approx(100)


def test_float32_models_run_at_the_float32_rate() -> None:
    assert of_machine(MACHINE, 0, "bfloat16").encode_flops == 5e11
    assert of_machine(MACHINE, 0, "float32").encode_flops == 1e11


def test_machines_share_items_and_pay_what_each_needs() -> None:
    parts = (Part("a", 100, "s", 1.0), Part("b", 10, "s", 1.0, "each"), Part("c", 5, "s", 1.0, "once"))
    stage = Stage("s", 7, parts)
    assert stage.wall_seconds(3) == pytest.approx(100 * 3 / 7 + 15)  # three rounds of items
    assert stage.machine_seconds(3) == 100 + 30 + 5
    assert stage.wall_seconds(7) == stage.wall_seconds(1000) == pytest.approx(100 / 7 + 15)
    assert stage.machine_seconds(1000) == 100 + 70 + 5  # no more machines than items
    assert Stage("s", 0, parts[1:]).wall_seconds(3) == 15
    uneven = dataclasses.replace(stage, largest_share=0.5)
    assert uneven.wall_seconds(1) == stage.wall_seconds(1)
    assert uneven.wall_seconds(3) == uneven.wall_seconds(7) == pytest.approx(50 + 15)
    assert uneven.machine_seconds(3) == stage.machine_seconds(3)


def test_money_by_hand() -> None:
    stage = Stage(
        "s",
        4,
        (Part("a", 7200, "s", 1.0),),
        written_bytes=6e12,
        kept_bytes=5e12,
        shuffle_bytes=3e9,
        object_reads=2000,
        object_writes=4000,
    )
    estimate = Estimate("c", (stage,))
    money = estimate.money(MACHINE, 2, PRICES)
    assert estimate.machine_hours(2) == pytest.approx(2.0)
    assert (money.on_demand, money.spot) == (pytest.approx(6.0), pytest.approx(2.0))
    # 4 vCPU · 0.05 + 16 GiB · 0.004 + 50 GB · 0.0001 an hour, and 3 GB · 0.01.
    assert money.dataflow == pytest.approx(2 * (0.2 + 0.064 + 0.005) + 0.03)
    assert money.operations == pytest.approx(4 * 0.005 + 2 * 0.0004)
    assert money.storage_month == pytest.approx(100.0)
    unpriced = estimate.money(None, 2, PRICES)
    assert (unpriced.on_demand, unpriced.spot, unpriced.dataflow) == (None, None, None)
    accelerated = dataclasses.replace(MACHINE, accelerators=1)
    assert estimate.money(accelerated, 2, PRICES).dataflow is None  # rather than one without the accelerator
    priced = dataclasses.replace(accelerated, dataflow_accelerator_per_hour=2.0)
    assert estimate.money(priced, 2, PRICES).dataflow == pytest.approx(2 * 2.269 + 0.03)


def test_work_without_a_rate_is_named_and_counts_nothing() -> None:
    stage = model.encode_stage(SHAPE, CorpusShape(1, 10, 1, 10, 10), Rates("here", pipeline_seconds=0.0))
    estimate = Estimate("c", (stage,))
    assert estimate.wall_seconds(1) == 0
    assert estimate.unknown() == [
        "encoding: reading and tokenizing",
        "encoding: gradients and projections",
        "encoding: writing encodings",
    ]


CORPORA = st.builds(
    lambda items, examples, length: CorpusShape(
        items, 5.0 * examples * length, examples, examples * length, examples * length
    ),
    st.integers(1, 10_000),
    st.floats(1, 1e9),
    st.floats(2, 4096),
)


@given(CORPORA, st.floats(1, 100), st.integers(1, 5000))
def test_more_work_never_takes_less_and_more_machines_never_longer(
    corpus: CorpusShape, times: float, machines: int
) -> None:
    rates = of_machine(MACHINE, 1e9, "bfloat16")
    larger = dataclasses.replace(
        corpus,
        text_bytes=times * corpus.text_bytes,
        examples=times * corpus.examples,
        tokens=times * corpus.tokens,
        padded_tokens=times * corpus.padded_tokens,
    )
    one, other = (model.encode_stage(SHAPE, c, rates) for c in (corpus, larger))
    assert other.wall_seconds(machines) >= one.wall_seconds(machines)
    assert other.machine_seconds(machines) >= one.machine_seconds(machines)
    assert one.wall_seconds(machines + 1) <= one.wall_seconds(machines) * (1 + 1e-9)
    assert one.machine_seconds(machines) >= one.wall_seconds(machines) * (1 - 1e-9)


@given(st.integers(1, 4000), st.integers(1, 1000), st.integers(1, 500), st.booleans())
def test_more_queries_or_places_never_take_less(groups: int, queries: int, top_k: int, changed: bool) -> None:
    rates = of_machine(MACHINE, 1e9, "bfloat16")

    def seconds(queries: int, top_k: int) -> float:
        scan = ScanShape(1e7, 4000, groups, 24e7, queries, top_k, 2, changed)
        stages = (model.scan_stage(SHAPE, scan, rates), model.merge_stage(scan, rates))
        return sum(stage.machine_seconds(1) for stage in stages)

    assert seconds(queries + 1, top_k) >= seconds(queries, top_k)
    assert seconds(queries, top_k + 1) >= seconds(queries, top_k)


def test_a_calibration_is_kept_and_read(tmp_path) -> None:
    path = tmp_path / "calibration.json"
    rates = Rates("here", encode_flops=2e9, load_seconds=1.5)
    path.write_text(rates.to_json())
    assert read_rates(str(path)) == rates
    table = of_machine(MACHINE, 1e9, "bfloat16")
    merged = rates.over(table)
    assert merged.encode_flops == 2e9
    assert merged.load_seconds == 1.5
    assert merged.scan_flops == table.scan_flops
    named = Basis(MACHINE, False, rates).rates(1e9, "bfloat16")
    assert (named.machine, named.encode_flops, named.load_seconds) == ("m", 2e9, 1.5)
    assert named.start_seconds == named.restart_seconds == 100  # machines are ordered all the same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "not a calibration"),
        ("[1]", "not a calibration"),
        ('{"format": 7, "machine": "here"}', "of another version"),
        ('{"format": 1, "machine": "here", "speed": 3}', "of another version"),
        ('{"format": 1, "machine": "here", "encode_flops": -1}', "encode_flops is -1; it must be a number above zero"),
        ('{"format": 1, "machine": "here", "load_seconds": "1"}', "load_seconds is '1'; it must be zero or more"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(TrackStarError, match=message):
        read_rates(str(path))
