"""Flags that say which model is used, and how workers run it. Nothing is imported here that runs one."""

import argparse

from pipelines import flag_types


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--model (perhaps not `required`), --device, --threads_per_worker and --allow_low_coverage."""
    text = "checkpoint folder of the model, with its tokenizer"
    group = add_worker_arguments(parser, text, "an encoding", required)
    group.add_argument(
        "--allow_low_coverage",
        action="store_true",
        help="go on where less than half of the non-embedding parameters can be attributed",
    )


def add_worker_arguments(
    parser: argparse.ArgumentParser, model: str, result: str, required: bool = True
) -> argparse._ArgumentGroup:
    """--model, --device and --threads_per_worker.

    Args:
        parser: To add to.
        model: Help of --model.
        result: What another number of threads may change.
        required: Whether --model has to be given.

    Returns:
        The group, for more flags about the model.
    """
    group = parser.add_argument_group("the model")
    group.add_argument("--model", required=required, metavar="CKPT", help=model)
    group.add_argument("--device", default="auto", help="auto, cpu or cuda: where workers run the model")
    group.add_argument(
        "--threads_per_worker",
        type=flag_types.positive,
        default=1,
        metavar="N",
        help=f"threads of torch in each worker; another number may change the last bits of {result}",
    )
    return group
