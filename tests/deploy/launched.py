"""What the tests of this folder share: launches as Dataflow's launcher carries them out, and the graphs that come of them."""

import functools
import json
from typing import Any

import apache_beam as beam

from deploy.launches import launch_body
from deploy.settings import EXAMPLE_SETTINGS, Settings
from pipelines import cli, driver, options, runner
from pipelines.baseline import RankCorpus
from pipelines.build_index import EncodeItems, LoadEncoder
from pipelines.driver import Launch
from pipelines.elements import OneByOne
from pipelines.progress import Reporter
from pipelines.query_parts import EncodeQueries
from pipelines.rewriting import RewriteItems
from pipelines.sample_sums import SumOverSample, WhitenOverSample
from pipelines.scanning import Scan, ScanIndex, WriteResults
from pipelines.score import ScoreIndex
from pipelines.second_pass import RescoreEncoded, RescoreStored, TwoPasses
from pipelines.standing_scans import load_tops
from pipelines.tail_patch import RunTasks
from pipelines.verify import VerifyFiles
from tests import gcs as store
from trackstar.covariances import Part
from trackstar.encoder import EncoderSource
from trackstar.evaluation.corpus_scan import RandomMethod
from trackstar.evaluation.tail_patch import TailPatchSettings, TailPatchSource
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.two_pass import TwoPassRun

IMAGE = "us-central1-docker.pkg.dev/example-project/trackstar/trackstar:1.2.3"
COMMANDS = driver.commands()


@functools.cache
def settings() -> Settings:
    """The example's settings."""
    return Settings.load(EXAMPLE_SETTINGS)


def body(command: str) -> dict[str, Any]:
    """A command's launch body."""
    return launch_body(command, settings(), IMAGE)["launchParameter"]


def launcher_words(command: str, bucket: str) -> list[str]:
    """The command line of the template's program: parameters and environment as flags, in alphabetical order.

    The names of the environment's flags are those that Dataflow's launcher gives to Python.
    """
    launch = body(command)
    environment = launch["environment"]
    flags = {
        **launch["parameters"],
        "runner": "DataflowRunner",
        "project": settings().project,
        "region": settings().region,
        "job_name": launch["jobName"],
        "temp_location": environment["tempLocation"],
        "staging_location": environment["stagingLocation"],
        "service_account_email": environment["serviceAccountEmail"],
        "sdk_container_image": environment["sdkContainerImage"],
        "template_location": f"gs://{settings().bucket}/staging/template_launches/1/job_object",
    }
    words = [f"--{name}={flags[name]}" for name in sorted(flags)]
    return [word.replace(f"gs://{settings().bucket}", bucket) for word in words]


def driver_job(command: str, bucket: str, address: str) -> dict[str, Any]:
    """The job that a launch makes of the driver: what its launcher leaves in the store."""
    assert driver.main(launcher_words(command, bucket)) == cli.EXIT_DONE
    return read(bucket, "staging/template_launches/1/job_object", address)


def work_jobs(command: str, bucket: str, address: str) -> list[dict[str, Any]]:
    """The jobs that the command starts from within the driver: its real transforms, the flags that the driver gives it."""
    launch = Launch.parse(launcher_words(command, bucket))
    _, beam_args = options.parse(cli.parser(command), launch.words)
    jobs = []
    for number, transform in enumerate(transforms(bucket)[command]):
        place = f"graphs/{command}-{number}"
        build = functools.partial(_apply, transform)
        runner.write_template(build, [*beam_args, f"--template_location={bucket}/{place}"])
        jobs.append(read(bucket, place, address))
    return jobs


def _apply(transform: beam.PTransform, pipeline: beam.Pipeline) -> None:
    _ = pipeline | "Work" >> transform


def read(bucket: str, name: str, address: str) -> dict[str, Any]:
    """An object of the store, as JSON."""
    return json.loads(store.client(address).bucket(bucket.removeprefix("gs://")).blob(name).download_as_text())


def transforms(bucket: str) -> dict[str, list[beam.PTransform]]:
    """What each command's jobs consist of."""
    source = EncoderSource("{}", f"{bucket}/model", None, None, "auto", 1, False)
    item = {"shard": f"{bucket}/a.jsonl"}  # No graph looks into it.
    part = Part("weight", "left", 4, ("weight",))
    query = Query("q", "The capital of France is", "Paris")
    reporter, index = Reporter(), f"{bucket}/index"
    scan = Scan(f"{index}/queries.safetensors", None, ScanSettings(10, True, True, "auto"), 8)
    patch = TailPatchSource(f"{bucket}/model", None, TailPatchSettings(), "auto", 1)
    rank = RankCorpus(
        items=[item],
        method=RandomMethod(["q"], 0),
        top_k=10,
        max_reject_fraction=0.01,
        queries=[query],
        query_set="q",
        output=f"{bucket}/r.jsonl",
        reporter=reporter,
    )
    score = ScoreIndex(
        elements=[[]], scan=scan, queries=[query], query_set="q", output=f"{bucket}/r.jsonl", reporter=reporter
    )
    described = TwoPassRun(index, 0, "sign", index, 0, "bfloat16", 1, 10, 10, 0)
    propose, write = ScanIndex([[]], scan, reporter), WriteResults([query], "q", f"{bucket}/r.jsonl")
    two_passes = [
        TwoPasses(propose, f"{index}/links", 1, rescore, check, write, described, [0], f"{bucket}/r.two_pass.json")
        for rescore, check in (
            (RescoreStored(index, scan, 1.0, reporter), propose),
            (RescoreEncoded(source, scan, 1.0, reporter), None),
        )
    ]
    encode = EncodeItems([item], source, index, reporter)
    rewrite = RewriteItems([(item, "key")], "{}", index, reporter)
    compare = OneByOne([None]) | "LoadEncoder" >> beam.ParDo(LoadEncoder(source))
    ask = EncodeQueries([(f"{index}/part", [query])], source)
    rank_again = ScanIndex([[]], scan, reporter)
    named = "StandingSet" >> beam.Create([(index, "q")], reshuffle=False)
    show = named | "Tops" >> beam.MapTuple(load_tops) | WriteResults([query], "q", f"{bucket}/r.jsonl")
    return {
        "fit": [
            SumOverSample([item, item, item], source, "gram", f"{index}/fit", f"{index}/fit/gram.total"),
            WhitenOverSample([item, item, item], source, [part], f"{index}/fit/sums", "{}", None, f"{index}/fit/made"),
        ],
        "build-index": [encode, rewrite],
        "reindex": [encode, rewrite, compare, ask, rank_again],
        "score": [ask, score, *two_passes],
        "standing": [ask, rank_again, show],
        "verify": [VerifyFiles([[]], index, "{}", f"{index}/checks", reporter), encode],
        "baseline": [rank],
        "tail-patch": [RunTasks([], patch, reporter)],
    }
