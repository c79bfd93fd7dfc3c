"""Ray on a simulated cluster of three machines with GPUs, one of which is lost amidst the run."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from lora_prep.executors.local import LocalExecutor
from lora_prep.executors.ray import RayExecutor
from lora_prep.run import run
from lora_prep.types import Outcome, Status
from tests.fakes.hazards import Hazards

ROOT = Path(__file__).parents[2]
MEMORY = 100 * 2**20
COUNT = 80
MACHINE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": MEMORY}
"""The GPU is one in name: Ray hands it out, and the stage does not use it."""

NOTICED = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A machine that refuses to answer is lost in two seconds; one that is slow has 10 each time."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the stage, which lies among the tests
    head = {**MACHINE, "include_dashboard": False, "_system_config": NOTICED}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def write(root: Path, special: dict[int, str]) -> Path:
    (root / "in").mkdir(parents=True)
    for i in range(COUNT):
        text = special.get(i, f"text {i}")
        (root / "in" / f"{i:03}.txt").write_text(text)
    return root


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "out").iterdir()}


@pytest.mark.timeout(900)  # three machines' worth of processes start slowly where others work, too
def test_a_machine_is_lost_and_nothing_else(tmp_path: Path, cluster: Cluster) -> None:
    special = {3: "!fail", **dict.fromkeys(range(8, COUNT), "!slow")}
    here = write(tmp_path / "here", special)
    there = write(tmp_path / "there", special)
    run(Hazards(here, slow=0.0), here, executor=LocalExecutor(2))

    lost: Any = cluster.add_node(**MACHINE)
    cluster.add_node(**MACHINE)
    cluster.wait_for_nodes()
    outcomes: list[Outcome] = []
    done_before: list[int] = []

    def observe(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if not done_before and len(list((there / "pids").iterdir())) == 3:  # one on each machine
            cluster.remove_node(lost, allow_graceful=False)
            done_before.append(len(outcomes))

    stage = Hazards(there, slow=0.3)
    executor = RayExecutor(cluster.address, threads=1, num_gpus=0.5)
    report = run(stage, there, executor=executor, observe=observe)

    assert {outcome.key for outcome in outcomes} == {item.key for item in stage.items()}
    assert report.counts == {Status.DONE: COUNT - 1, Status.FAILED: 1}
    assert [o.key for o in outcomes if o.code == "shy"] == ["in/003.txt"]
    assert files(there) == files(here), "the same bytes, and no part file is left"
    lines = (there / ".lora-prep/hazards.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["key"] for line in lines).most_common(1)[0][1] == 1
    assert done_before[0] < COUNT - 16, "the machine was lost while there was much to do"
    again = run(stage, there, executor=LocalExecutor(1))  # the same stage by another one
    assert again.counts == {Status.FRESH: COUNT - 1, Status.FAILED: 1}
