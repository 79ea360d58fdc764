"""Shows results in the browser: queries with their proponents and opponents, filters, metrics, several runs side by side.

Results files are ours or those of the paper's release. Without --export a server on this machine sends them to the browser,
and nowhere else, until Ctrl-C. With it, one HTML file is written that opens from disk and can be passed on.
"""

import argparse
import contextlib
import threading
import webbrowser
from collections.abc import Iterator

from pipelines import cli, flag_types
from pipelines.progress import say
from trackstar import storage
from trackstar.amounts import human_bytes
from trackstar.errors import TrackStarError
from trackstar.evaluation.facts import Fact, read_facts
from trackstar.evaluation.judging import default_names
from trackstar.viewer import export, listening
from trackstar.viewer.app import view_app
from trackstar.viewer.rows import OnProgress, Run, open_run

_QUARTERS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("results", nargs="+", metavar="FILE", help="results, JSONL; several stand side by side")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call each of them (its file's name)")
    parser.add_argument(
        "--facts",
        metavar="FILE",
        help="annotations, JSONL (fact_id, gold_ids), that say which proponents are correct (the results' own field "
        "proponent_correct)",
    )
    written = parser.add_argument_group("one file in place of a server")
    written.add_argument("--export", metavar="FILE", help="write one HTML file that opens from disk, and end")
    written.add_argument(
        "--max_proponents",
        type=flag_types.positive,
        metavar="N",
        help="proponents, and opponents, of each query that the file holds (all); metrics stay those of all",
    )
    server = parser.add_argument_group("the server")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="interface to listen on; 0.0.0.0 lets everybody on the network read the results",
    )
    server.add_argument(
        "--port",
        type=flag_types.port_or_auto,
        default=listening.AUTO,
        metavar="N",
        help=f"port; 0: any that is free; auto: {listening.PREFERRED_PORT}, or any",
    )
    server.add_argument("--no_browser", action="store_true", help="print the address and open no browser")


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Reads, then writes or serves."""
    if args.max_proponents is not None and args.export is None:
        raise TrackStarError("--max_proponents makes an exported file smaller: give --export FILE, too")
    names = args.names or default_names(args.results)
    if len(names) != len(args.results):
        raise TrackStarError(f"--names: {len(names)} given for {len(args.results)} results file(s); give one each")
    if len(set(names)) < len(names):
        raise TrackStarError(f"two files would have the same name ({', '.join(names)}); tell them apart with --names")
    facts = read_facts(args.facts) if args.facts else None
    with opened(names, args.results, facts) as runs:
        if args.export:
            export_page(args.export, runs, args.max_proponents)
        else:
            _serve(runs, args.host, args.port, not args.no_browser)
    return cli.EXIT_DONE


@contextlib.contextmanager
def opened(names: list[str], uris: list[str], facts: dict[str, Fact] | None) -> Iterator[list[Run]]:
    """The files, open until the block ends; says how far reading is where it takes long."""
    with contextlib.ExitStack() as stack:
        runs = []
        for name, uri in zip(names, uris, strict=True):
            file = open_run(name, storage.normalise(uri), facts, _teller(uri))
            stack.callback(file.close)
            say(f"{uri}: {len(file.rows):,} queries")
            runs.append(file)
        yield runs


def export_page(uri: str, runs: list[Run], max_proponents: int | None) -> None:
    """Writes the page and says what became of it."""
    written = export.write_page(uri, runs, max_proponents)
    note = f"; of {written.cut:,} of them the first {max_proponents} proponents" if written.cut else ""
    say(f"{uri}: {written.num_queries:,} queries{note}, {human_bytes(written.num_bytes)}")
    if written.num_bytes > export.LARGE:
        say(
            f"warning: a page of {human_bytes(written.num_bytes)} opens slowly; --max_proponents 10 makes it smaller, and "
            "without --export a server sends only what is looked at"
        )


def _teller(uri: str) -> OnProgress:
    told = 0

    def tell(share: float) -> None:
        nonlocal told
        quarter = int(share * _QUARTERS)
        if quarter > told and quarter < _QUARTERS and storage.size(uri) > export.LARGE:
            say(f"{uri}: {100 * quarter // _QUARTERS} % read")
        told = max(told, quarter)

    return tell


def _serve(runs: list[Run], host: str, port: int | str, opens_browser: bool) -> None:
    listener = listening.bind(host, port)
    url = listening.url_of(listener, host)

    def started() -> None:
        print(url, flush=True)
        say("Ctrl-C ends the server")
        if opens_browser:
            threading.Thread(target=_open_browser, args=(url,), daemon=True).start()

    if not listening.is_loopback(host):
        say(f"warning: --host {host}: whoever reaches this machine can read these results; there is no password")
    listening.serve(view_app(runs, only_local=listening.is_loopback(host)), listener, started)


def _open_browser(url: str) -> None:
    """Not in the server's thread: a browser for terminals returns when it is closed."""
    if not webbrowser.open(url):
        say("no browser found here: open the address yourself")


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.view`."""
    return cli.run_command("view", argv)


if __name__ == "__main__":
    raise SystemExit(main())
