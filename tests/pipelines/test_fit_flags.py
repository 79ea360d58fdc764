"""fit's flags: recipes, and what is given beside them."""

import logging

import pytest

from pipelines import fit, options
from tests.tiny_models import tiny_model
from trackstar.attributed import attributing
from trackstar.errors import TrackStarError
from trackstar.models import LoadedModel, prepare_model
from trackstar.spec import Spec


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    """What is said to the person at the terminal goes to the log."""
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A Llama of three layers: 21 weights."""
    return prepare_model(tiny_model("llama"))


def spec(loaded: LoadedModel, *flags: str) -> Spec:
    """The spec that the flags give, of a model without second moments."""
    parser = options.Parser(prog="fit")
    fit.add_arguments(parser)
    words = ["--index", "i", "--corpus", "c", "--model", "m", "--max_length", "16", *flags]
    args = fit._with_recipe(options.parse(parser, words)[0])
    return fit._make_spec(args, attributing(loaded, args.attributed), None, args.moments != "none")


def choice(made: Spec) -> tuple[str, str, int, int]:
    return made.layout, made.normalisation, made.block_rows, made.block_columns


def test_the_default_is_one_block_a_weight(loaded: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    made = spec(loaded, "--dimension", "600")
    assert choice(made) == ("weights", "block", 10, 10)
    assert made.num_blocks == 6
    assert made.dimension == 600
    assert "d = 600: one block of 10×10 a weight (6, outputs), each to unit norm first" in caplog.text
    assert (made.attributed, made.projection, made.storage) == ("outputs", "whitened", "sign")
    assert (made.moments, made.preconditioner) == ("none", "none")
    assert spec(loaded, "--dimension", "600", "--recipe", "default") == made
    of_outputs = attributing(loaded, "outputs").weights
    largest = [max(getattr(weight, side) for weight in of_outputs) for side in ("outputs", "inputs")]
    assert choice(spec(loaded))[2:] == tuple(min(104, side) for side in largest)  # 65,536 / 6 = 104.5²


def test_the_papers_recipe(loaded: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    made = spec(loaded, "--recipe", "paper")
    assert choice(made) == ("blocks", "vector", 64, 64)
    assert made.num_blocks == 6  # three layers, attention and MLP apart
    assert "pooled blocks of 64×64 (6), unit norm of the whole" in caplog.text
    assert (made.attributed, made.projection, made.storage) == ("all", "gaussian", "bfloat16")
    assert (made.moments, made.moments_source, made.preconditioner) == ("exact", "estimated", "pending")


def test_an_optimizer_state_is_used_where_nothing_else_is_said(loaded: LoadedModel) -> None:
    parser = options.Parser(prog="fit")
    fit.add_arguments(parser)

    def moments(*flags: str) -> str:
        words = ["--index", "i", "--corpus", "c", "--model", "m", *flags]
        return fit._with_recipe(options.parse(parser, words)[0]).moments

    assert moments() == "none"
    assert moments("--optimizer_state", "f") == moments("--recipe", "paper") == "auto"
    assert moments("--optimizer_state", "f", "--moments", "factored") == "factored"
    with pytest.raises(TrackStarError, match="--moments none contradicts --optimizer_state"):
        moments("--optimizer_state", "f", "--moments", "none")


def test_what_is_given_wins_over_the_recipe(loaded: LoadedModel) -> None:
    assert choice(spec(loaded, "--recipe", "paper", "--block_rows", "8")) == ("blocks", "vector", 8, 64)
    assert choice(spec(loaded, "--recipe", "paper", "--layout", "weights", "--block_rows", "3")) == (
        "weights",
        "vector",
        3,
        64,
    )
    assert choice(spec(loaded, "--recipe=paper", "--block_rows=auto", "--block_columns=auto", "--dimension=600")) == (
        "blocks",
        "vector",
        10,
        10,
    )
    assert choice(spec(loaded, "--layout", "blocks", "--dimension", "600")) == ("blocks", "block", 10, 10)
    assert choice(spec(loaded, "--normalisation", "vector", "--block_rows=6", "--block_columns=6")) == (
        "weights",
        "vector",
        6,
        6,
    )
    made = spec(
        loaded, "--attributed", "mlp", "--storage", "int8", "--moments", "factored", "--preconditioner", "train"
    )
    assert (made.attributed, made.num_blocks, made.storage) == ("mlp", 9, "int8")
    assert (made.moments, made.preconditioner) == ("factored", "pending")
    given = spec(loaded, "--block_rows=10", "--block_columns=10")
    assert given.hash == spec(loaded, "--dimension=600").hash  # the spec holds what came out, not how


def test_sizes_that_make_no_sense_are_told(loaded: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    spec(loaded, "--dimension", "60")
    assert "so small blocks keep little" in caplog.text
    with pytest.raises(TrackStarError, match="--dimension 20 is too small for 21 blocks"):
        spec(loaded, "--dimension", "20", "--attributed", "all")
    for bad in ("0", "-3", "many"):
        with pytest.raises(options.UsageError, match="is not a whole number above zero"):
            spec(loaded, f"--block_rows={bad}")
    with pytest.raises(options.UsageError, match="invalid choice: 'best'"):
        spec(loaded, "--recipe=best")


def test_whitened_projections(loaded: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    plain = spec(loaded, "--projection=gaussian")
    assert (plain.projection, plain.projection_fingerprint, plain.whitening_damping) == ("gaussian", "", 0.0)
    assert spec(loaded, "--projection=gaussian", "--whitening_damping=0.3").hash == plain.hash  # nothing depends on it
    assert "whitened" not in caplog.text
    made = spec(loaded, "--projection=whitened", "--whitening_damping=0.3")
    assert (made.projection, made.projection_fingerprint, made.whitening_damping) == ("whitened", "pending", 0.3)
    assert "projections: whitened by the sample, damping 0.3 of the mean eigenvalue" in caplog.text
    assert spec(loaded, "--recipe=paper", "--projection=whitened").projection == "whitened"
    with pytest.raises(TrackStarError, match=r"--whitening_damping -1\.0: .* above zero"):
        spec(loaded, "--projection=whitened", "--whitening_damping=-1")
