"""Launch bodies: what is posted to `flexTemplates:launch` to run a command, and what Cloud Scheduler posts every night."""

import dataclasses
from typing import Any

from deploy.settings import Settings, Shape, shapes
from deploy.templates import environment

NIGHTLY = "reindex"
"""The command that Cloud Scheduler launches."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a command needs beside the settings.

    Args:
        work: What its workers do. "encode" runs the model on one work item at a time: one process a machine on a GPU, without
            one a process a processor, each with one thread, which keeps files byte-identical. "scan" multiplies encodings: one
            process a machine, all its threads. "records" is plain Python: Dataflow's default of a process a processor.
        parameters: Values of its flags.
        driver_machine_type: For a main process that needs more than the default machine.
        scans: Whether jobs of "encode" scan the index, too.
    """

    work: str
    parameters: dict[str, str]
    driver_machine_type: str = ""
    scans: bool = False


def plans(settings: Settings) -> dict[str, Plan]:
    """How each command is launched."""
    corpus, model, index = settings.corpus, settings.model, settings.uri("index")
    queries, results = settings.uri("queries/queries.jsonl"), settings.uri("results/results.jsonl")
    encode = {"corpus": corpus, "model": model, "index": index}
    return {
        "fit": Plan("encode", encode, driver_machine_type="e2-highmem-8"),
        "build-index": Plan("encode", encode),
        "reindex": Plan("encode", {**encode, "vacuum_days": str(settings.vacuum_days)}, scans=True),
        "score": Plan("scan", {"index": index, "model": model, "queries": queries, "output": results}),
        "baseline": Plan(
            "records",
            {"method": "bm25", "corpus": corpus, "queries": queries, "output": settings.uri("results/bm25.jsonl")},
        ),
        "standing": Plan("scan", {"action": "update", "index": index}),
        "verify": Plan("records", {"index": index}),
        "tail-patch": Plan(
            "encode", {"results": results, "model": model, "output": settings.uri("results/tail_patch.jsonl")}
        ),
    }


def launch_body(command: str, settings: Settings, image: str) -> dict[str, Any]:
    """The body of the request; its job name is constant, so Dataflow refuses a second launch while the first runs."""
    plan = plans(settings)[command]
    shape = shapes()[settings.scan_shape if plan.work == "scan" else settings.encode_shape]
    if plan.work == "records":
        shape = shapes()["cpu"]
    machines = worker_parameters(plan, shape, settings.max_workers)
    parameters = {"command": command, **plan.parameters, **machines}
    parameters["worker_service_account"] = settings.service_account("worker")
    if plan.driver_machine_type:
        parameters["driver_machine_type"] = plan.driver_machine_type
    return {
        "launchParameter": {
            "jobName": f"trackstar-{command}",
            "containerSpecGcsPath": settings.uri(f"templates/{command}.json"),
            "parameters": parameters,
            "environment": environment(settings, image),
        }
    }


def worker_parameters(plan: Plan, shape: Shape, max_workers: int) -> dict[str, str]:
    """The flags that give a command's jobs their machines."""
    found = {
        "machine_type": shape.machine_type,
        "worker_disk_type": f"compute.googleapis.com/projects//zones//diskTypes/{shape.disk_type}",
        "disk_size_gb": str(shape.disk_size_gb),
        "max_num_workers": str(max_workers),
    }
    if plan.work == "records":
        return found
    found["number_of_worker_harness_threads"] = "1"
    if shape.accelerator:
        found["dataflow_service_options"] = f"worker_accelerator=type:{shape.accelerator};count:1;install-nvidia-driver"
    one_process = bool(shape.accelerator) or plan.work == "scan"
    if one_process:
        found["experiments"] = "no_use_multiple_sdk_containers"
    if plan.work == "scan" or plan.scans:
        # The command would count the processors of the driver's machine.
        found["scan_threads"] = str(shape.vcpus if one_process else 1)
    return found
