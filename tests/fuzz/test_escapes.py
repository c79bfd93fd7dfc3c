"""Nothing that lies in a data set makes lora-prep write, move or delete outside of it."""

import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_prep import imageio
from lora_prep.dataset import Dataset
from lora_prep.errors import DatasetError, ItemError
from lora_prep.journal import hash_file
from lora_prep.validate import manifest as validate_manifest
from lora_prep.validate.fix import undo
from tests.test_run import by_content
from tools.faults.cases import make, picture

Command = Callable[..., object]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with masks, and something beside it that is nobody's business."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("not yours")
    made = make(tmp_path / "data", 2)
    (made / "masks").mkdir()
    for number in range(2):
        mask = imageio.encode_mask(np.full((96, 96), 255, np.uint8))
        (made / "masks" / f"i{number}.png").write_bytes(mask)
    return made


@pytest.fixture
def outside(data: Path) -> Iterator[Path]:
    """The folder beside; at the end it has to be as it was."""
    folder = data.parent / "outside"
    before = tree(folder)
    yield folder
    assert tree(folder) == before
    assert sorted(p.name for p in data.parent.iterdir()) == ["data", "outside"]


def trash(data: Path, *lines: object) -> Path:
    folder = data / ".lora-prep" / "trash" / "2026-01-01"
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines)
    (folder / "manifest.jsonl").write_text(text)
    return folder


class TestUndo:
    """`lora-prep validate --undo FOLDER` with a manifest of somebody else's making."""

    @pytest.mark.parametrize("there", ["../outside/new.png", "{outside}/new.png", "link/new.png"])
    def test_moves_nothing_out(self, data: Path, outside: Path, lora_prep: Command, there: str):
        (data / "link").symlink_to(outside)
        line = {"code": "P002", "from": there.format(outside=outside), "to": "masks/i0.png"}
        before = tree(data / "masks")
        result = lora_prep("validate", data, "--undo", trash(data, line), code=2)
        assert "Error" in result.output
        assert tree(data / "masks") == before

    @pytest.mark.parametrize("there", ["../outside/secret.txt", "{outside}/secret.txt"])
    def test_moves_nothing_in(self, data: Path, outside: Path, lora_prep: Command, there: str):
        line = {"code": "P002", "from": "stolen.txt", "to": there.format(outside=outside)}
        lora_prep("validate", data, "--undo", trash(data, line), code=2)
        assert not (data / "stolen.txt").exists()

    @pytest.mark.parametrize(
        "line",
        ["{", "[]", "3", "null", '{"from": 1, "to": 2}', '{"from": "a"}', "[" * 50_000,
         '{"from": "a\\u0000b", "to": "c"}', '{"from": "", "to": ""}', "\ufeff{}"],
    )  # fmt: skip
    def test_nonsense_is_said(self, data: Path, outside: Path, lora_prep: Command, line: str):
        result = lora_prep("validate", data, "--undo", trash(data, line + "\n"), code=2)
        assert "manifest.jsonl" in result.output

    def test_a_torn_last_line_and_folders_that_are_links_are_fine(
        self, data: Path, lora_prep: Command
    ):
        (data / "masks").rename(data.parent / "elsewhere")
        (data / "masks").symlink_to(data.parent / "elsewhere")
        line = {"code": "P002", "from": "masks/back.png", "to": ".lora-prep/trash/back.png"}
        folder = trash(data, line, '{"code": "P0')  # killed while it was written: nothing moved
        (folder.parent / "back.png").write_bytes(b"a mask")
        lora_prep("validate", data, "--undo", folder)
        assert (data.parent / "elsewhere" / "back.png").read_bytes() == b"a mask"

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(st.sampled_from(["..", ".", "outside", "masks", "i0.png", "link", "/", "a"])))
    def test_any_path_stays_inside(self, data: Path, tmp_path: Path, parts: list[str]):
        link = data / "link"
        if not link.is_symlink():
            link.symlink_to(data.parent)
        path = "/".join(parts)
        beside = tree(data.parent / "outside")
        for line in ({"from": path, "to": "masks/i0.png"}, {"from": "a/b", "to": path}):
            with suppress(DatasetError):
                list(undo(Dataset.at(data), trash(data, line)))
        assert tree(data.parent / "outside") == beside
        assert sorted(p.name for p in data.parent.iterdir()) == ["data", "outside"]


class TestLinks:
    """Symbolic links in circles and to elsewhere."""

    @pytest.fixture
    def linked(self, data: Path, outside: Path) -> Path:
        faces = data / "faces"
        (faces / "loop").symlink_to(faces)
        (faces / "a.png").symlink_to("b.png")
        (faces / "b.png").symlink_to("a.png")
        (faces / "nowhere.png").symlink_to("/nowhere/at/all.png")
        (faces / "up").symlink_to(data.parent)
        return data

    @pytest.mark.parametrize(
        "arguments",
        [
            ["normalize", "DATA/faces", "--out", "DATA/copies", "--recursive"],
            ["validate", "DATA", "--recursive"],
            ["validate", "DATA", "--recursive", "--fix"],
            ["status", "DATA"],
            ["report", "DATA", "--out", "DATA/report.html"],
        ],
        ids=lambda arguments: " ".join(arguments[:1] + arguments[3:]),
    )
    def test_commands_end_and_stay_inside(
        self, linked: Path, lora_prep: Command, arguments: list[str]
    ):
        result = lora_prep(*(a.replace("DATA", str(linked)) for a in arguments), code=None)
        assert result.exit_code in (0, 1, 2)
        assert "Traceback" not in result.output


class TestJournal:
    """A journal that claims files outside the data set."""

    def test_nothing_outside_is_replaced_or_deleted(
        self, data: Path, outside: Path, lora_prep: Command
    ):
        arguments = ("normalize", data / "faces", "--out", data / "copies")
        lora_prep(*arguments)
        (journal,) = (data / ".lora-prep").glob("*.jsonl")
        secret = outside / "secret.txt"
        stamp = [hash_file(secret), secret.stat().st_size, None]
        lines = []
        for line in journal.read_text().splitlines():
            value = json.loads(line)
            value["outputs"] |= {"../outside/secret.txt": stamp, str(secret): stamp}
            lines.append(json.dumps(value))
        journal.write_text("\n".join(lines) + "\n")
        lora_prep(*arguments)
        lora_prep(*arguments, "--force")
        lora_prep("clean", data, "--yes", code=None)

    def test_nor_by_a_stage_whose_names_depend_on_the_content(self, data: Path, outside: Path):
        """Such a stage replaces what it made before under other names, which the journal tells."""
        (data / "in").mkdir()
        (data / "in" / "a.txt").write_text("x")
        assert by_content(data).exit_code == 0
        secret = outside / "secret.txt"
        stamp = [hash_file(secret), secret.stat().st_size, None]
        journal = data / ".lora-prep" / "shout.jsonl"
        value = json.loads(journal.read_text())
        value["outputs"] |= {"../outside/secret.txt": stamp, str(secret): stamp}
        value["outputs"] |= {f"out/../../outside/{secret.name}": stamp}
        journal.write_text(json.dumps(value) + "\n")
        (data / "in" / "a.txt").write_text("y")
        assert by_content(data).exit_code == 0
        assert [path.name for path in (data / "out").iterdir()] == ["a-Y.txt"]


class TestChecked:
    """What `validate` remembers of files that have not changed, written by somebody else."""

    SCRIPT = """
import sys
from lora_prep.validate import manifest
manifest.SETTLED_NS = 0  # the files were written just now
from lora_prep.cli import main
main(["validate", sys.argv[1], "--deep", "--json"])
"""
    WRONG: tuple[tuple[int, object], ...] = (
        *((0, value) for value in (None, 3)),
        *((1, value) for value in ("x", -1, 2**70, 1.5, [1])),
        *((2, value) for value in (3, {})),
        *((3, value) for value in ("x", float("nan"), -1.0)),
        (4, "x"),
    )
    """Which value of a line (image, hash, mask, coverage, drifts), and what is there instead."""

    def validate(self, data: Path) -> tuple[int, str]:
        """In a process of its own, where types are not checked as they are in tests."""
        command = [sys.executable, "-c", self.SCRIPT, data]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    def test_values_of_other_kinds_are_looked_up_again(self, data: Path):
        for number in range(2, len(self.WRONG)):  # fewer are not compared with one another
            (data / "faces" / f"i{number}.png").write_bytes(picture(number))
            mask = (data / "masks" / "i0.png").read_bytes()
            (data / "masks" / f"i{number}.png").write_bytes(mask)
        first = self.validate(data)
        known = data / ".lora-prep" / validate_manifest.FILE_NAME
        changed, *lines = known.read_text().splitlines()
        for line, (place, value) in zip(lines, self.WRONG, strict=True):
            name, _, rest = line.partition("\t")
            stamps, values, found = json.loads(rest)
            values[place] = value
            changed += f"\n{name}\t{json.dumps([stamps, values, found])}"
        known.write_text(changed + "\n")
        assert self.validate(data) == first


class TestBombs:
    """Small files that are large pictures."""

    @staticmethod
    def png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return (
                struct.pack(">I", len(body))
                + kind
                + body
                + struct.pack(">I", zlib.crc32(kind + body))
            )

        rows = zlib.compressobj(9)
        head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # a bit a pixel
        row = bytes(1 + (width + 7) // 8)
        body = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
        return (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        )

    def test_thirty_kilobytes_of_225_megapixels(self):
        bomb = self.png(15_000, 15_000)
        assert len(bomb) < 35_000
        tracemalloc.start()
        try:
            for read in (imageio.read_header, imageio.decode_image, imageio.decode_mask):
                with pytest.raises(ItemError) as caught:
                    read(bomb)
                assert caught.value.code == "too-large"
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

    def test_commands_report_it_and_go_on(self, data: Path, outside: Path, lora_prep: Command):
        (data / "faces" / "bomb.png").write_bytes(self.png(15_000, 15_000))
        result = lora_prep("normalize", data / "faces", "--out", data / "copies", code=1)
        assert "bomb.png" in result.output
        assert {p.name for p in (data / "copies").glob("*.png")} == {"i0.png", "i1.png"}
        assert "bomb.png" in lora_prep("validate", data, code=None).output

    def test_files_of_gigabytes_are_not_read(self, data: Path, lora_prep: Command):
        """Sparse ones, which take no room on the disk."""
        with (data / "faces" / "huge.png").open("wb") as file:
            file.truncate((1 << 30) + 1)
        with (data / "embeddings.safetensors").open("wb") as file:
            file.truncate((4 << 30) + 1)
        tracemalloc.start()
        try:
            made = lora_prep("normalize", data / "faces", "--out", data / "copies", code=1)
            checked = lora_prep("validate", data, "--json", code=1)
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()
        assert "1,073,741,825 bytes are more than the limit" in made.output
        assert "larger than 1 GiB" in checked.stdout
        assert "4,294,967,297 bytes are more than the limit" in checked.stdout
