"""Serves an index: type a prompt and what the model said, and see the training examples behind it, out of all of them.

The page is at the address that is printed; programs ask the same server by HTTP (docs/api.md). Traces are exact: each one scans
the whole index, with progress, and can be cancelled; those that come meanwhile wait their turn. Every trace takes the index's
last snapshot, so a server goes on while the index is brought up to date, and what is taken down is in no result from then on.

Without --host it answers to this machine alone. There is no password: whoever reaches another address may ask.
"""

import argparse
import dataclasses
import logging

from pipelines import cli, flag_types
from pipelines.progress import say
from trackstar.server import connections
from trackstar.server.app import make_app
from trackstar.server.guard import Access
from trackstar.server.limits import Limits
from trackstar.server.service import Service
from trackstar.tracing import open_index
from trackstar.viewer import listening

_LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--index", required=True, metavar="DIR", help="the index that `trackstar build-index` filled")
    parser.add_argument(
        "--version", type=flag_types.natural, metavar="N", help="snapshot to stay with (the last at each trace)"
    )
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--model", required=True, metavar="CKPT", help="checkpoint folder of the model, with its tokenizer"
    )
    group.add_argument(
        "--device", default="auto", help="auto, cpu or cuda: where the model runs and the index is scanned"
    )
    group.add_argument(
        "--threads", type=flag_types.natural, default=0, metavar="N", help="threads of torch; 0: one a core"
    )
    group.add_argument(
        "--allow_low_coverage",
        action="store_true",
        help="go on where less than half of the non-embedding parameters can be attributed",
    )
    group.add_argument(
        "--task_hessian",
        default="none",
        metavar="none|identity|DIR",
        help="none: scores under R_train; identity: no preconditioner; or the folder of an R_eval that `trackstar score "
        "--keep_task_hessian` kept",
    )
    group.add_argument(
        "--task_mixing", type=flag_types.fraction, metavar="X", help="λ of R = λ R_eval + (1−λ) R_train (crossing rule)"
    )
    group = parser.add_argument_group("the address")
    group.add_argument(
        "--host", default="127.0.0.1", help="name or address to listen at; 0.0.0.0: at all of this machine's"
    )
    group.add_argument(
        "--port",
        type=flag_types.port_or_auto,
        default=listening.AUTO,
        metavar="N",
        help=f"port; 0: any that is free; auto: {listening.PREFERRED_PORT}, or any",
    )
    group.add_argument(
        "--allowed_host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="further names by which clients may call this server, such as that of a proxy before it",
    )
    group.add_argument(
        "--allow_origin",
        nargs="+",
        default=[],
        metavar="ORIGIN",
        help="other sites whose pages may ask this server, as https://example.org; *: all (none)",
    )
    group = parser.add_argument_group("limits")
    for field in dataclasses.fields(Limits):
        group.add_argument(
            f"--{field.name}",
            type=flag_types.positive,
            default=field.default,
            metavar="N",
            help=field.metadata["help"],
        )


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Serves until it is told to end."""
    limits = Limits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)})
    listener = listening.bind(args.host, args.port)
    try:
        tracer = open_index(
            args.index,
            args.model,
            args.device,
            task_hessian=args.task_hessian,
            task_mixing=args.task_mixing,
            version=args.version,
            threads=args.threads,
            allow_low_coverage=args.allow_low_coverage,
        )
        service = Service(tracer, args.model, limits, follow=args.version is None)
        app = make_app(service, Access.of(args.host, args.allowed_host, args.allow_origin))
        url = listening.url_of(listener, args.host)

        def on_start() -> None:
            say(f"{tracer.uri}: {tracer.num_examples:,} examples (version {tracer.version})")
            if not listening.is_loopback(args.host):
                _LOGGER.warning(
                    "whoever can reach %s may ask, without a password, and read the texts of the index; requests have to call "
                    "this server by a name that --host or --allowed_host gives",
                    args.host,
                )
            print(url, flush=True)
            say("Ctrl-C ends the server")

        connections.serve(app, service, listener, on_start)
    finally:
        listener.close()
    return cli.EXIT_DONE


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.serve`."""
    return cli.run_command("serve", argv)


if __name__ == "__main__":
    raise SystemExit(main())
