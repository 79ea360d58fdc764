"""The jobs that Dataflow would get, made offline by its own runner: machines, GPUs, image, disks, labels, accounts."""

import pytest

from deploy.launches import plans
from deploy.settings import shapes
from tests.deploy.launched import COMMANDS, IMAGE, driver_job, settings, work_jobs

pytest_plugins = ["tests.gcs"]


def _worker_pool(job):
    (pool,) = [pool for pool in job["environment"]["workerPools"] if pool["kind"] == "harness"]
    return pool


def _images(job):
    pool = _worker_pool(job)
    return {
        pool["workerHarnessContainerImage"],
        *(image["containerImage"] for image in pool["sdkHarnessContainerImages"]),
    }


def _options(job):
    return job["environment"]["sdkPipelineOptions"]["options"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_driver_is_one_small_machine(command, gcs, gcs_server):
    job = driver_job(command, gcs, gcs_server)
    pool = _worker_pool(job)
    assert job["name"] == f"trackstar-{command}"
    assert job["labels"] == {"trackstar-command": command}
    assert pool["machineType"] == ("e2-highmem-8" if command == "fit" else "e2-standard-4")
    assert (pool["numWorkers"], pool["autoscalingSettings"]["maxNumWorkers"]) == (1, 1)
    assert pool["diskSizeGb"] == 100
    assert _images(job) == {IMAGE}
    assert job["environment"]["serviceAccountEmail"] == settings().service_account("launcher")
    assert not any("worker_accelerator" in option for option in job["environment"].get("serviceOptions", []))
    assert "no_use_multiple_sdk_containers" in job["environment"]["experiments"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_workers_are_what_the_launch_body_says(command, gcs, gcs_server):
    work = plans(settings())[command].work
    shape = shapes()[{"encode": "l4", "scan": "cpu", "records": "cpu"}[work]]
    for job in work_jobs(command, gcs, gcs_server):
        pool, environment = _worker_pool(job), job["environment"]
        assert job["name"] == f"trackstar-{command}-work"
        assert job["labels"] == {"trackstar-command": command}
        assert pool["machineType"] == shape.machine_type
        assert pool["diskSizeGb"] == shape.disk_size_gb
        assert pool["diskType"].endswith("/diskTypes/pd-ssd")
        assert pool["autoscalingSettings"]["maxNumWorkers"] == settings().max_workers
        assert _images(job) == {IMAGE}
        assert environment["serviceAccountEmail"] == settings().service_account("worker")
        assert environment["tempStoragePrefix"].startswith(f"storage.googleapis.com/{gcs.removeprefix('gs://')}/tmp")
        accelerators = [o for o in environment.get("serviceOptions", []) if o.startswith("worker_accelerator=")]
        if work == "encode":
            assert accelerators == ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]
        else:
            assert accelerators == []
        single = "no_use_multiple_sdk_containers" in environment["experiments"]
        assert single == (work != "records")
        assert ("use_multiple_sdk_containers" in environment["experiments"]) != single
        assert _options(job).get("number_of_worker_harness_threads") == (None if work == "records" else 1)


def test_a_large_gpu_is_a_matter_of_one_setting():
    from dataclasses import replace

    from deploy.launches import launch_body

    parameters = launch_body("build-index", replace(settings(), encode_shape="a100-80gb"), IMAGE)["launchParameter"][
        "parameters"
    ]
    assert parameters["machine_type"] == "a2-ultragpu-1g"
    assert "type:nvidia-a100-80gb;count:1;" in parameters["dataflow_service_options"]


@pytest.mark.parametrize("command", ["score", "standing"])
def test_scans_may_take_a_gpu(command):
    from dataclasses import replace

    from deploy.launches import launch_body

    launch = launch_body(command, replace(settings(), scan_shape="l4"), IMAGE)["launchParameter"]
    parameters = launch["parameters"]
    assert parameters["machine_type"] == "g2-standard-8"
    assert parameters["dataflow_service_options"] == "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
    assert parameters["experiments"] == "no_use_multiple_sdk_containers"
    assert parameters["number_of_worker_harness_threads"] == "1"
    assert "device" not in parameters  # auto: the GPU, where there is one


def test_scans_take_the_processors_of_their_machines():
    from dataclasses import replace

    from deploy.launches import launch_body

    def threads(command, **changes):
        launch = launch_body(command, replace(settings(), **changes), IMAGE)["launchParameter"]
        return launch["parameters"].get("scan_threads")

    assert threads("score") == threads("standing") == "8"
    assert threads("reindex") == "8"
    assert threads("reindex", encode_shape="a100-80gb") == "12"
    assert threads("reindex", encode_shape="cpu") == "1"  # a process a processor
    assert threads("build-index") is None
