"""Flags of the commands that listen."""

import argparse

from pipelines import flag_types
from trackstar.viewer import listening


def add_address_arguments(parser: argparse._ActionsContainer) -> None:
    """Where the server listens."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="name or address of the interface to listen on (this machine alone); with 0.0.0.0 everybody on the network can ask "
        "and read, without a password",
    )
    parser.add_argument(
        "--port",
        type=flag_types.port_or_auto,
        default=listening.AUTO,
        metavar="N",
        help=f"port; 0: any that is free; auto: {listening.PREFERRED_PORT}, or any",
    )
