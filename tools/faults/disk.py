"""Disks that are full, and folders that cannot be written to.

With a file system of our own where the system allows one (a tmpfs in a mount namespace), else with
a limit on the size of files and with a file in the folder's place.

    python -m tools.faults.disk FOLDER CASE      run inside the namespace; prints counts as JSON
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tools.faults.cases import CASES, Case
from tools.faults.counts import Counts, inputs
from tools.faults.zygote import SECONDS, Zygote, zygote

PAGE = 4096
ROOM = 64 << 20
"""Bytes of the file system when it is not to be full."""


def full_and_read_only(case: Case, folder: Path, *, steps: Sequence[int]) -> list[Counts]:
    """Run a case where so many pages are free, and where nothing can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    for unshare in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        command = [*unshare, sys.executable, "-m", "tools.faults.disk", str(folder), case.name]
        try:
            result = subprocess.run(
                [*command, *map(str, steps)], capture_output=True, text=True, timeout=5 * SECONDS
            )
        except FileNotFoundError:
            break
        if result.returncode == 0:
            return [Counts(**value) for value in json.loads(result.stdout)]
        if result.returncode != NO_MOUNT and "unshare" not in result.stderr:
            raise RuntimeError(result.stderr)
    with zygote(folder / "logs", case.modules) as forking:
        return [
            limited(forking, case, folder / "limited", sizes=[PAGE * n // 4 for n in steps]),
            obstructed(forking, case, folder / "obstructed"),
        ]


NO_MOUNT = 3
"""What the inner process ends with where it may not mount."""


def limited(zygote: Zygote, case: Case, folder: Path, *, sizes: Sequence[int]) -> Counts:
    """Run where no file may have more than so many bytes: part files or the journal hit it."""
    counts = Counts(f"file size limit in {case.name}")
    data, twin = case.make(folder / "data"), case.make(folder / "twin")
    before = inputs(data)
    zygote.run(case.command(twin))
    wanted = case.made(twin)
    for size in sizes:
        case.forget(data)
        ended = zygote.run(case.command(data), file_bytes=size)
        _told(counts, ended.code, ended.said)
        counts.look(case, data, wanted)
        zygote.run(case.command(data))
        counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts


def obstructed(zygote: Zygote, case: Case, folder: Path) -> Counts:
    """Run with a file where the output folder should be."""
    counts = Counts(f"a file in the way in {case.name}")
    data, twin = case.make(folder / "data"), case.make(folder / "twin")
    before = inputs(data)
    zygote.run(case.command(twin))
    wanted = case.made(twin)
    target = data / case.outputs[0]
    target.parent.mkdir(exist_ok=True)
    target.write_text("in the way")
    ended = zygote.run(case.command(data))
    counts.expect(f"exit code {ended.code}", ended.said, ok=ended.code == 2)
    counts.lost += target.read_text() != "in the way"
    target.unlink()
    counts.disturbed = counts.unfinished = 1
    zygote.run(case.command(data))
    counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts


def _told(counts: Counts, code: int, said: str) -> None:
    """An end by a full disk has to say so; one that was not hit is fine as well."""
    words = ("No space left", "File too large", "free some space", "lift the limit")
    counts.expect(
        f"exit code {code}", said, ok=code == 0 or (code == 2 and any(w in said for w in words))
    )


# ---------------------------------------------------------------------------- in the namespace
def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def _full(zygote: Zygote, case: Case, disk: Path, steps: Sequence[int]) -> Counts:
    """Leave so many pages free, again and again."""
    counts = Counts(f"disk full in {case.name} (tmpfs)")
    data, twin = case.make(disk / "data"), case.make(disk / "twin")
    before = inputs(data)
    zygote.run(case.command(twin))
    wanted = case.made(twin)
    for free in steps:
        case.forget(data)
        used = ROOM - shutil.disk_usage(disk).free
        _mount(disk, f"remount,size={used + free * PAGE}")
        ended = zygote.run(case.command(data))
        _told(counts, ended.code, ended.said)
        counts.look(case, data, wanted)
        _mount(disk, f"remount,size={ROOM}")
        ended = zygote.run(case.command(data))
        counts.expect(f"after it {ended.code}", ended.said, ok=ended.code == 0)
        counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts


def _read_only(zygote: Zygote, case: Case, disk: Path) -> Counts:
    """Run on a file system that is read-only, from the start and when the half is done."""
    counts = Counts(f"read-only in {case.name} (tmpfs)")
    data, twin = case.make(disk / "data-ro"), case.make(disk / "twin-ro")
    before = inputs(data)
    zygote.run(case.command(twin))
    wanted = case.made(twin)
    for half in (False, True):
        case.forget(data)
        if half:
            hidden = sorted((data / "faces").iterdir())[::2]
            for path in hidden:
                path.rename(disk / path.name)
            zygote.run(case.command(data))
            for path in hidden:
                (disk / path.name).rename(path)
        _mount(disk, "remount,ro")
        ended = zygote.run(case.command(data))
        said = "ead-only file system" in ended.said
        counts.expect(f"exit code {ended.code}", ended.said, ok=ended.code == 2 and said)
        counts.look(case, data, wanted)
        _mount(disk, "remount,rw")
        zygote.run(case.command(data))
        counts.compare(case, data, wanted)
    counts.keep(before, data)
    return counts


def _main(folder: Path, name: str, steps: Sequence[int]) -> int:
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    if not _mount(disk, f"size={ROOM}"):
        return NO_MOUNT
    case = next(case for case in CASES if case.name == name)
    with zygote(folder / "logs", case.modules) as forking:
        found = [_full(forking, case, disk, steps), _read_only(forking, case, disk)]
    print(json.dumps([asdict(counts) for counts in found]))
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2], [int(step) for step in sys.argv[3:]]))
