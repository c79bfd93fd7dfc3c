"""Inputs that vanish or change meanwhile, clocks that jump, devices that are full."""

import random
import time
from pathlib import Path

from tools.faults.cases import Case, picture
from tools.faults.counts import Counts, inputs
from tools.faults.kill import seconds
from tools.faults.zygote import Zygote


def inputs_change(zygote: Zygote, case: Case, folder: Path, *, times: int, seed: int = 0) -> Counts:
    """Write over, replace and delete images at random moments of a run.

    An item may fail; the run that follows has to make of the images that are there in the end what
    a run on these images alone makes, and nothing may be left that none of them stands for but a
    result that is said to be old.
    """
    counts = Counts(f"inputs change in {case.name}")
    moment = random.Random(seed)
    made = case.make(folder / "timing")
    whole = seconds(zygote, case.command(made), case, made)
    for number in range(times):
        data = case.make(folder / f"data{number}")
        running = zygote.start(case.command(data))
        for _ in range(4):
            time.sleep(moment.uniform(0, 0.25) * whole)
            _change(data, moment)
        ended = running.wait()
        counts.expect(f"exit code {ended.code}", ended.said, ok=ended.code in (0, 1))
        counts.disturbed += 1
        counts.unfinished += 1
        before = inputs(data)
        zygote.run(case.command(data))
        counts.keep(before, data)
        twin = folder / f"twin{number}"
        (twin / "faces").mkdir(parents=True)
        for name, content in before.items():
            (twin / "faces" / name).write_bytes(content)
        zygote.run(case.command(twin))
        wanted, found = case.made(twin), case.made(data)
        counts.different += sum(found.get(name) != wanted[name] for name in wanted)
        counts.left += sum(name.endswith(".part") for name in found)
    return counts


def _change(data: Path, moment: random.Random) -> None:
    images = sorted((data / "faces").glob("*.png"))
    path = moment.choice(images)
    match moment.choice(["replace", "cut", "delete"] if len(images) > 4 else ["replace", "cut"]):
        case "replace":
            new = path.with_suffix(".new")
            new.write_bytes(picture(moment.randrange(1000)))
            new.replace(path)
        case "cut":  # as an editor does that writes in place, and is interrupted
            content = picture(moment.randrange(1000))
            path.write_bytes(content[: len(content) // 2])
        case _:
            path.unlink()


def clock_jumps(zygote: Zygote, case: Case, folder: Path, *, times: int) -> Counts:
    """Let the time of day jump by years at every other question; the second run finds all fresh."""
    counts = Counts(f"clock jumps in {case.name}")
    data, twin = case.make(folder / "data"), case.make(folder / "twin")
    before = inputs(data)
    zygote.run(case.command(twin))
    wanted = case.made(twin)
    for seed in range(times):
        case.forget(data)
        for _ in range(2):
            ended = zygote.run(case.command(data), clock=seed)
            counts.expect(f"exit code {ended.code}", ended.said, ok=ended.code == 0)
            counts.disturbed += 1
            counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts


def device_full(zygote: Zygote, case: Case, folder: Path, *, sizes: range) -> Counts:
    """Let batches of more than so many images run out of the device's memory."""
    counts = Counts(f"out of device memory in {case.name}")
    data, twin = case.make(folder / "data"), case.make(folder / "twin")
    before = inputs(data)
    zygote.run(case.command(twin))
    wanted = case.made(twin)
    for fits in sizes:
        case.forget(data)
        ended = zygote.run(case.command(data), fits=fits)
        ok = ended.code == 0 if fits else ended.code == 1 and "do not fit" in ended.said
        counts.expect(f"exit code {ended.code}", ended.said, ok=ok)
        counts.look(case, data, wanted)
        if not fits:  # not even one: each image fails by itself, and the next run makes them
            zygote.run(case.command(data))
        counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts
