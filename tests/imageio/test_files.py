"""A name leads to all of the bytes or to none of them, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lora_prep import imageio
from lora_prep.errors import DatasetError

DEAD = f"{imageio.new_token().split('-')[0]}-{2**31 - 1}-0123abcd"
ELSEWHERE = f"00000000-{2**31 - 1}-0123abcd"


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def test_the_part_is_hidden_and_beside_the_file(tmp_path):
    path = tmp_path / "img001.png"
    token = imageio.new_token()
    part = imageio.write_part(path, b"new", token=token)
    assert part == tmp_path / f".img001.png.{token}.part"
    assert part.read_bytes() == b"new"
    assert not path.exists()
    imageio.commit(part, path)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_replace(tmp_path):
    path = tmp_path / "img001.png"
    for data in (b"one", b"", bytes(3_000_000)):
        imageio.replace(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    imageio.replace(tmp_path / "replaced", b"")
    assert (tmp_path / "replaced").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".png", "肖像" * 41 + ".png", "new\nline.png", "-.png"]
)
def test_any_name_that_the_file_system_takes(tmp_path, name):
    path = tmp_path / name
    part = imageio.write_part(path, b"data", token=DEAD)
    assert part.name.startswith(".")
    assert imageio.sweep(tmp_path) == 1
    imageio.replace(path, b"data")
    assert list(tmp_path.iterdir()) == [path]


def test_tokens_differ_and_are_checked(tmp_path):
    assert imageio.new_token() != imageio.new_token()
    for token in ("", "mine", "../../x", imageio.new_token() + "\n"):
        with pytest.raises(ValueError, match="new_token"):
            imageio.write_part(tmp_path / "a", b"", token=token)
    assert list(tmp_path.iterdir()) == []


def test_readers_see_whole_files_only(tmp_path):
    path = tmp_path / "mask.png"
    versions = [bytes([i]) * 200_000 for i in range(200)]
    imageio.replace(path, versions[0])
    seen, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for data in versions:
        imageio.replace(path, data)
    stop.set()
    reader.join()
    assert len(seen) > 1
    assert set(seen) <= set(versions)
    assert path.read_bytes() == versions[-1]


def test_a_kill_leaves_whole_files_only(tmp_path):
    """Killed again and again while it writes: every final is complete, and parts get swept."""
    code = """
import sys
from pathlib import Path
from lora_prep import imageio
for i in range(10**9):
    imageio.replace(Path(sys.argv[1]) / f"{i % 20}.png", bytes([i % 256]) * 1_000_000)
    if i == 20:
        print("writing", flush=True)
"""
    for i in range(3):
        writer = run_python(code, tmp_path)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        time.sleep(0.005 * i)
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        imageio.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 20
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert data == data[:1] * 1_000_000


# failures


def test_a_full_disk(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(b"old")
    token = imageio.new_token()
    (tmp_path / f".mask.png.{token}.part").symlink_to("/dev/full")
    with pytest.raises(DatasetError, match=r"mask\.png: .*No space left.*free some space"):
        imageio.write_part(path, b"new", token=token)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_a_write_that_stops_half_way(tmp_path):
    """The kernel takes the first 100 kB and refuses the rest."""
    code = """
import resource, sys
from pathlib import Path
from lora_prep import imageio
from lora_prep.errors import DatasetError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path(sys.argv[1])
imageio.replace(path, b"fits")
try:
    imageio.replace(path, bytes(150_000))
except DatasetError as error:
    print(error)
"""
    path = tmp_path / "mask.png"
    told, _ = run_python(code, path).communicate()
    assert told.startswith(f"{path}: cannot be written (File too large)")
    assert path.read_bytes() == b"fits"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(DatasetError, match="create the folder first"):
        imageio.replace(tmp_path / "nowhere" / "mask.png", b"")


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "mask.png" / "inside").mkdir(parents=True)
    with pytest.raises(DatasetError, match="a folder is in the way"):
        imageio.replace(tmp_path / "mask.png", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"]


def test_make_folder(tmp_path):
    for _ in range(2):
        imageio.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DatasetError, match="a file is in the way"):
            imageio.make_folder(folder)


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    open_path = Path.open

    def interrupted(self: Path, mode: str):
        with open_path(self, mode) as file:
            file.write(b"half")
        assert self.stat().st_size == 4
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imageio.write_part(tmp_path / "a", b"half and half", token=imageio.new_token())
    assert list(tmp_path.iterdir()) == []


# left-over parts


def test_sweep_takes_the_parts_of_dead_runs_only(tmp_path):
    code = """
import sys, time
from pathlib import Path
from lora_prep import imageio
imageio.write_part(Path(sys.argv[1]), b"", token=imageio.new_token())
print("written", flush=True)
time.sleep(60)
"""
    dead = run_python(code, tmp_path / "dead.png")
    live = run_python(code, tmp_path / "live.png")
    for writer in (dead, live):
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
    mine = imageio.write_part(tmp_path / "mine.png", b"", token=imageio.new_token())
    far = imageio.write_part(tmp_path / "far.png", b"", token=ELSEWHERE)
    dead.kill()
    dead.communicate()
    try:
        assert len(list(tmp_path.iterdir())) == 4
        assert imageio.sweep(tmp_path) == 1
        left = {p.name.split(".")[1] for p in tmp_path.iterdir()}
        assert left == {"live", "mine", "far"}
        assert imageio.sweep(tmp_path) == 0
    finally:
        live.kill()
        live.communicate()
    assert imageio.sweep(tmp_path) == 1
    assert {*tmp_path.iterdir()} == {mine, far}


def test_old_parts_go_wherever_they_come_from(tmp_path):
    for age, token in ((4000, ELSEWHERE), (3000, ELSEWHERE), (4000, imageio.new_token())):
        part = imageio.write_part(tmp_path / f"{age}.png", b"", token=token)
        os.utime(part, (time.time() - age,) * 2)
    assert imageio.sweep(tmp_path) == 2
    assert [p.name.split(".")[1] for p in tmp_path.iterdir()] == ["3000"]
    assert imageio.sweep(tmp_path, older_than=2000.0) == 1


def test_sweep_leaves_everything_else(tmp_path):
    old = (0, 0)
    kept = [
        f"img.{DEAD}.part",
        f".img.png.{DEAD}",
        f".{DEAD}.part",
        ".img.png.part",
        ".img.png.1234-abcd.part",
        f".img.png.{DEAD}.part.png",
        "img.png",
        ".DS_Store",
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"mine")
        os.utime(tmp_path / name, old)
    (tmp_path / f".folder.{DEAD}.part").mkdir()
    (tmp_path / f".link.{DEAD}.part").symlink_to(tmp_path / "img.png")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f".img.png.{DEAD}.part").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    assert imageio.sweep(tmp_path, older_than=0.0) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert imageio.sweep(tmp_path / "below") == 1


def test_sweep_of_a_folder_that_is_not_there(tmp_path):
    assert imageio.sweep(tmp_path / "nowhere") == 0
    (tmp_path / "file").write_bytes(b"")
    assert imageio.sweep(tmp_path / "file") == 0
