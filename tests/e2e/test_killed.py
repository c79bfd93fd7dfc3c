"""Killed at any moment and run again, `lora-prep masks` ends as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

KILLS = 5


def command(faces: Path) -> list[str]:
    return [sys.executable, "-m", "lora_prep", "masks", str(faces), "--preset", "embedded", "-q"]


def result(faces: Path) -> dict[str, bytes]:
    folder = faces.parent / "masks"
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def test_killed_many_times(faces, tmp_path):
    undisturbed = tmp_path / "undisturbed" / "faces"
    undisturbed.parent.mkdir()
    subprocess.run(["cp", "-r", faces, undisturbed], check=True)
    subprocess.run(command(undisturbed), check=False, capture_output=True)
    wanted = result(undisturbed)
    assert len(wanted) >= 8

    moment = random.Random(7)
    unfinished = 0
    for _ in range(KILLS):
        if result(faces).keys() == wanted.keys():  # start over, to have something to interrupt
            subprocess.run(["rm", "-r", faces.parent / "masks"], check=True)
        process = subprocess.Popen(command(faces), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        enough = moment.randint(0, len(wanted) - 2)  # masks that are there when it is killed
        while process.poll() is None and len(result(faces)) < enough:
            time.sleep(0.002)
        time.sleep(moment.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = {k: v for k, v in result(faces).items() if not k.startswith(".")}
        assert all(wanted[name] == data for name, data in found.items()), "a file is partial"
        unfinished += found.keys() != wanted.keys()
    assert unfinished >= 2, "most kills came too late to interrupt anything"

    subprocess.run(command(faces), check=False, capture_output=True)
    assert result(faces) == wanted, "the same bytes, and no part file is left"
    before = (faces.parent / ".lora-prep/masks.jsonl").read_bytes()
    subprocess.run(command(faces), check=False, capture_output=True)
    again = (faces.parent / ".lora-prep/masks.jsonl").read_bytes().removeprefix(before)
    assert not [line for line in again.splitlines() if json.loads(line)["status"] == "done"]


def test_nothing_is_done_twice(faces):
    """Between two kills no output is removed here, so each mask may be journalled only once."""
    moment = random.Random(11)
    for _ in range(3):
        process = subprocess.Popen(command(faces), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(moment.uniform(0.5, 2.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run(command(faces), check=False, capture_output=True)
    journal = (faces.parent / ".lora-prep/masks.jsonl").read_text()
    lines = [json.loads(line) for line in journal.splitlines() if line.endswith("}")]
    files = defaultdict(set)  # by their inodes, of which every file that was written has its own
    for line in lines:
        for path, (_, _, stat, *_) in line["outputs"].items():
            files[path].add(tuple(stat))
    assert len(files) >= 8
    assert {len(written) for written in files.values()} == {1}
