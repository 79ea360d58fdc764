"""Flags: ours, Beam's, and neither."""

import dataclasses

import pytest
from apache_beam.options.pipeline_options import DebugOptions, DirectOptions, StandardOptions

from pipelines import options


@pytest.fixture
def parser() -> options.Parser:
    parser = options.Parser(prog="toy")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--top_k", type=int, default=100, help="how many")
    parser.add_argument("--corpus", nargs="+", default=[])
    parser.add_argument("--dry_run", action="store_true")
    return parser


@pytest.mark.parametrize("words", [["--top_k", "7"], ["--top-k", "7"], ["--top_k=7"], ["--top-k=7"]])
def test_own_flags_with_either_joiner(parser: options.Parser, words: list[str]) -> None:
    args, beam_args = options.parse(parser, words)
    assert args.top_k == 7
    assert beam_args == []


def test_beam_flags_pass_through_in_order_with_their_values(parser: options.Parser) -> None:
    args, beam_args = options.parse(
        parser,
        [
            *["--runner", "DirectRunner", "the-folder", "--direct-num-workers=2", "--corpus", "a.jsonl", "b.jsonl"],
            *["--save_main_session", "--experiments", "one", "--experiment=two", "--top_k", "3"],
        ],
    )
    assert (args.folder, args.top_k, args.corpus) == ("the-folder", 3, ["a.jsonl", "b.jsonl"])
    beam_options = options.pipeline_options(beam_args)
    assert beam_options.view_as(StandardOptions).runner == "DirectRunner"
    assert beam_options.view_as(DirectOptions).direct_num_workers == 2
    assert beam_options.view_as(DebugOptions).experiments == ["one", "two"]


def test_a_flag_of_ours_that_beam_has_too_is_ours(parser: options.Parser) -> None:
    args, beam_args = options.parse(parser, ["--dry_run"])
    assert args.dry_run
    assert beam_args == []


def test_flags_of_beams_own_tests_are_unknown() -> None:
    with pytest.raises(options.UsageError, match=r"^unknown flag --dry_run"):
        options.parse(options.Parser(prog="toy"), ["--dry_run"])


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--topk", "--top_k"),
        ("--top-kk=5", "--top_k"),
        ("--direct_num_worker", "--direct_num_workers"),
        ("--runer=DirectRunner", "--runner"),
        ("--worker_machine_typo", "--worker_machine_type"),
    ],
)
def test_an_unknown_flag_names_the_nearest(parser: options.Parser, flag: str, nearest: str) -> None:
    with pytest.raises(options.UsageError) as caught:
        options.parse(parser, [flag])
    assert str(caught.value) == f"unknown flag {flag.partition('=')[0]}; did you mean {nearest}?"


def test_an_unknown_flag_that_is_near_to_nothing(parser: options.Parser) -> None:
    with pytest.raises(options.UsageError, match="--xyzzy: it is neither this command's nor Apache Beam's"):
        options.parse(parser, ["--xyzzy"])


def test_no_abbreviations(parser: options.Parser) -> None:
    with pytest.raises(options.UsageError, match="unknown flag --top;"):
        options.parse(parser, ["--top", "3"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top_k", "many"], "argument --top_k: invalid int value: 'many'"),
        (["--top_k"], "argument --top_k: expected one argument"),
        (["a", "b"], "unrecognized arguments: b"),
        (["-q"], "unrecognized arguments: -q"),
        (
            ["--direct_num_workers=many"],
            "argument --direct_num_workers: invalid int value: 'many' (a flag of Apache Beam)",
        ),
        (["--temp_location"], "argument --temp_location: expected one argument (a flag of Apache Beam)"),
        (
            ["--direct_running_mode=threads"],
            "argument --direct_running_mode: invalid choice: 'threads'",
        ),
    ],
)
def test_malformed_values(parser: options.Parser, words: list[str], message: str) -> None:
    with pytest.raises(options.UsageError) as caught:
        options.parse(parser, words)
    assert str(caught.value).startswith(message)


def test_words_after_two_dashes_are_not_flags(parser: options.Parser) -> None:
    args, beam_args = options.parse(parser, ["--top_k=1", "--", "--runner"])
    assert args.folder == "--runner"
    assert beam_args == []


@dataclasses.dataclass(frozen=True)
class Settings:
    rows: int = dataclasses.field(metadata={"help": "rows of a block"})
    damping: float = dataclasses.field(metadata={"help": "damping"})
    layout: str = dataclasses.field(metadata={"help": "layout", "choices": ("blocks", "weights")})
    stores_text: bool = dataclasses.field(metadata={"help": "text"})
    limit: int | None = dataclasses.field(metadata={"help": "limit"})


def test_flags_of_a_settings_dataclass() -> None:
    parser = options.Parser(prog="toy")
    defaults = {"rows": 64, "damping": 0.1, "layout": "blocks", "stores_text": True, "limit": None}
    options.add_field_arguments(parser, Settings, defaults)
    assert vars(options.parse(parser, [])[0]) == defaults
    words = ["--rows=3", "--damping=0.5", "--layout=weights", "--stores-text=false", "--limit=9"]
    given = {"rows": 3, "damping": 0.5, "layout": "weights", "stores_text": False, "limit": 9}
    assert vars(options.parse(parser, words)[0]) == given
    with pytest.raises(options.UsageError, match="invalid choice: 'rows'"):
        options.parse(parser, ["--layout=rows"])
    with pytest.raises(options.UsageError, match="'perhaps' is neither true nor false"):
        options.parse(parser, ["--stores_text=perhaps"])
    assert "rows of a block (64)" in parser.format_help()
