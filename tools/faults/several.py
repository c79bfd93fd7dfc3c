"""Every stage through every executor: the same bytes, also where a machine of the cluster is lost.

Ray runs on a simulated cluster of three machines, all on this one. Two have half a GPU for each
worker, in name alone: Ray hands them out, and the stages stay on the CPU.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from lora_prep.cli import main
from tools.faults.cases import Case
from tools.faults.counts import Counts, inputs
from tools.faults.zygote import Zygote

PROCESSES = ("--executor", "processes", "--workers", "2")
RAY = ("--executor", "ray", "--workers", "2", "--num-gpus", "0.5", "--threads", "1")
STORE = 100 * 2**20
ROOT = Path(__file__).parents[2]


@contextmanager
def cluster() -> Iterator[Any]:
    """A Ray cluster of a head without work and two machines; this process is connected to it."""
    os.environ["PYTHONPATH"] = str(ROOT)
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            add(started)
        started.wait_for_nodes()
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        yield started
    finally:
        ray.shutdown()
        started.shutdown()  # type: ignore[no-untyped-call]


def add(to: Any) -> Any:
    """One more machine."""
    return to.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)


def same(zygote: Zygote, case: Case, folder: Path, *, ray: bool = True) -> Iterator[Counts]:
    """A case by `local`, then by the others: what differs is counted."""
    twin = case.make(folder / "local")
    ended = zygote.run(case.command(twin))
    wanted = case.made(twin)
    for name, options in (("processes", PROCESSES), ("ray", RAY))[: 2 if ray else 1]:
        counts = Counts(f"{case.name} by --executor {name}")
        counts.expect(f"local {ended.code}", ended.said, ok=ended.code == 0 and bool(wanted))
        data = case.make(folder / name)
        before = inputs(data)
        command = [*case.command(data), *options]
        if name == "ray":
            here(counts, command)
        else:
            other = zygote.run(command)
            counts.expect(f"exit code {other.code}", other.said, ok=other.code == 0)
        counts.disturbed = 1
        counts.compare(case, data, wanted)
        counts.keep(before, data)
        yield counts


def machine_lost(zygote: Zygote, case: Case, folder: Path, on: Any) -> Counts:
    """Take a machine out of the cluster as soon as something is made; then a new one joins."""
    case = replace(case, count=40)
    counts = Counts(f"a machine of the Ray cluster lost in {case.name}")
    data, twin = case.make(folder / "data"), case.make(folder / "twin")
    before = inputs(data)
    zygote.run(case.command(twin))
    wanted = case.made(twin)
    lost = on.worker_nodes.copy().pop()
    seen: list[int] = []

    def take() -> None:
        while not case.names(data):
            time.sleep(0.001)
        seen.append(len(case.names(data)))
        on.remove_node(lost, allow_graceful=False)

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    here(counts, [*case.command(data), *RAY])
    taking.join()
    counts.disturbed, counts.unfinished = 1, int(seen[0] < len(wanted))
    counts.compare(case, data, wanted)
    counts.keep(before, data)
    add(on)
    return counts


def here(counts: Counts, command: Sequence[str]) -> None:
    """Run a command in this process, which holds the connection to the cluster."""
    result = CliRunner().invoke(main, list(command))
    said = f"{result.output}{result.exception or ''}"
    counts.expect(f"exit code {result.exit_code}", said, ok=result.exit_code == 0)
