import hashlib
import io
import json
import os
import pty
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from lora_prep import imageio
from lora_prep.backends import catalogue, licenses, weights
from tests.fakes import hub, loopback

TINY = "facebook/sam2-hiera-tiny"
CHECKPOINT = bytes(range(256)) * 200


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without models, who has accepted nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.fixture
def server(home, monkeypatch):
    """A hub that has a checkpoint, and a release that has a pack."""
    with hub.serve() as server:
        server.add_to_hub(TINY, "sam2_hiera_tiny.pt", CHECKPOINT)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("det_500m.onnx", b"detector")
            archive.writestr("w600k_mbf.onnx", b"recogniser")
        content = data.getvalue()
        server.add_release("buffalo_sc.zip", content)
        monkeypatch.setattr(weights, "RELEASES", f"{server.url}/releases/")
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(weights.PACKS, "buffalo_sc", weights.Pack(digest, len(content)))
        for name in ("det_500m.onnx", "w600k_mbf.onnx"):
            monkeypatch.delitem(catalogue.PACK_FILES, name)
        yield server


@pytest.fixture
def pack(home):
    """A pack that is here already."""
    folder = home / ".insightface" / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    (folder / "det_10g.onnx").write_bytes(b"x" * 1000)
    return folder


class TestList:
    def test_a_line_for_each_model(self, home, lora_prep):
        head, *lines, licence = lora_prep("models", "list").stdout.splitlines()
        assert head.split() == ["model", "for", "download", "here", "sha256", "licence", "from"]
        assert [line.split()[0] for line in lines] == [*catalogue.MODELS]
        table = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
        assert table["buffalo_l"] == (
            "faces 289 MB no 80ffe37d8a59 non-commercial research "
            "github.com/deepinsight/insightface"
        )
        assert table[TINY] == (
            "masks 156 MB no the hub's Apache-2.0 huggingface.co/facebook/sam2-hiera-tiny"
        )
        assert table["yunet"] == (
            "faces 0.2 MB no 8f2383e4dd3c MIT huggingface.co/opencv/face_detection_yunet"
        )
        assert licence == (
            "insightface's licence (for non-commercial research only): not accepted yet"
        )

    def test_what_is_here(self, server, pack, lora_prep):
        lora_prep("models", "pull", TINY)
        licenses.accept()
        *lines, licence = lora_prep("models", "list").stdout.splitlines()
        assert [line.split()[0] for line in lines if " yes " in line] == ["buffalo_l", TINY]
        assert licence.endswith("only): accepted")

    def test_for_machines(self, pack, lora_prep):
        content = json.loads(lora_prep("models", "list", "--json").stdout)
        assert (content["schema"], content["insightface_license_accepted"]) == (1, False)
        models = {model.pop("name"): model for model in content["models"]}
        assert [*models] == [*catalogue.MODELS]
        assert models["buffalo_l"] == {
            "use": "faces",
            "license": "non-commercial research",
            "bytes": 288621354,
            "sha256": "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
            "source": f"{weights.RELEASES}buffalo_l.zip",
            "path": str(pack),
        }
        assert (models[TINY]["sha256"], models[TINY]["path"]) == (None, None)


class TestPull:
    def test_prints_the_place_and_nothing_else(self, server, lora_prep):
        first = lora_prep("models", "pull", TINY)
        assert Path(first.stdout.removesuffix("\n")).read_bytes() == CHECKPOINT
        assert "sam2_hiera_tiny.pt: 100%" in first.stderr
        again = lora_prep("models", "pull", TINY)
        assert (again.stdout, again.stderr) == (first.stdout, "")
        assert len(server.bodies) == 1

    def test_several(self, server, home, lora_prep):
        done = lora_prep("models", "pull", TINY, "buffalo_sc", "--accept-license")
        assert [Path(line).name for line in done.stdout.splitlines()] == [
            "sam2_hiera_tiny.pt",
            "buffalo_sc",
        ]
        assert f"licence accepted: {licenses.record()}" in done.stderr

    def test_goes_on_where_it_broke_off(self, server, lora_prep):
        server.cuts = [30_000]
        failed = lora_prep("models", "pull", TINY, code=2)
        assert failed.stdout == ""
        assert "the next try goes on there" in failed.stderr
        lora_prep("models", "pull", TINY)
        assert [request.range for request in server.bodies] == ["", "bytes=30000-"]

    def test_a_pack_wants_its_licence_accepted(self, server, home, lora_prep):
        failed = lora_prep("models", "pull", "buffalo_sc", code=2)
        assert failed.stdout == ""
        assert "lora-prep models pull buffalo_sc --accept-license" in failed.stderr
        assert "--detector yunet (MIT)" in failed.stderr
        assert server.requests == []
        assert not licenses.record().exists()

    def test_accepted_once(self, server, lora_prep):
        lora_prep("models", "pull", "buffalo_sc", "--accept-license")
        assert "buffalo_sc" in lora_prep("models", "pull", "buffalo_sc").stdout

    def test_nobody_is_asked_for_free_models(self, server, lora_prep):
        lora_prep("models", "pull", TINY, "--accept-license")
        assert not licenses.record().exists()

    def test_without_a_network(self, home, monkeypatch, lora_prep):
        monkeypatch.setattr(constants, "ENDPOINT", loopback.closed())
        template = loopback.closed() + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        failed = lora_prep("models", "pull", "yunet", code=2)
        assert failed.stdout == ""
        assert "On a machine with a network run `lora-prep models pull yunet`" in failed.stderr
        assert "models--opencv--face_detection_yunet" in failed.stderr

    def test_an_unknown_name(self, home, lora_prep):
        failed = lora_prep("models", "pull", TINY, "sam2-hiera-tiny", code=2)
        assert f"no model sam2-hiera-tiny: did you mean {TINY}" in failed.stderr
        assert not (home / "hub").exists()  # nothing was begun


class TestAtATerminal:
    def run(self, answer, home):
        """Exit code, stdout, and what was shown at the terminal."""
        ours, theirs = pty.openpty()
        variables = {**os.environ, "HOME": str(home)}
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_prep", "models", "pull", "buffalo_l"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=variables,
        )
        os.close(theirs)
        os.write(ours, answer)
        stdout = process.communicate(timeout=60)[0].decode()
        shown = b""
        try:
            while piece := os.read(ours, 1 << 16):
                shown += piece
        except OSError:  # the other end was closed
            pass
        finally:
            os.close(ours)
        return process.returncode, stdout.strip(), shown.decode()

    def test_yes_is_asked_for_once(self, home, pack):
        code, stdout, shown = self.run(b"y\n", home)
        assert (code, stdout) == (0, str(pack))
        assert "non-commercial research only" in shown
        assert "--detector yunet (MIT)" in shown
        assert "Do you accept that? [y/N]:" in shown
        assert licenses.record().is_file()
        code, stdout, shown = self.run(b"", home)
        assert (code, stdout, shown) == (0, str(pack), "")

    def test_no_means_no(self, home, pack):
        code, stdout, shown = self.run(b"n\n", home)
        assert (code, stdout) == (2, "")
        assert "has not been accepted yet" in shown
        assert not licenses.record().exists()


class TestDryRun:
    """What is not here is named and not downloaded."""

    @pytest.fixture
    def images(self, home):
        folder = home / "data" / "faces"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(imageio.encode_image(np.zeros((9, 9, 3), np.uint8), "png"))
        return folder

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (("masks", "--preset", "fast", "--detector", "cascade"), TINY),
            (("masks", "--preset", "fast", "--accept-license"), f"buffalo_sc, {TINY}"),
            (("detect", "--detector", "yunet"), "yunet"),
            (("embed", "--recogniser", "sface", "--detector", "yunet"), "yunet, sface"),
        ],
    )
    def test_the_plan_is_made_without_the_models(self, server, images, lora_prep, options, named):
        command, *rest = options
        result = lora_prep(command, images, *rest, "--dry-run")
        assert "would be: 1 to make" in result.stdout
        assert f"not here yet: {named}. A dry run downloads nothing" in result.stderr
        assert server.requests == []

    def test_class_images_are_planned_without_the_pipeline(self, server, images, lora_prep):
        options = ("--class", "a person", "-n", 3, "--model", "some/pipeline", "--require-face")
        result = lora_prep("priors", images, *options, "--detector", "yunet", "--dry-run")
        assert "would be: 3 to make" in result.stdout
        assert "to make: 3 images; what they cost depends on the model" in result.stderr
        assert "not here yet: some/pipeline, yunet. A dry run downloads nothing" in result.stderr
        assert server.requests == []
        assert not (images.parent / "priors").exists()

    def test_what_is_here_needs_no_notice(self, server, images, lora_prep):
        lora_prep("models", "pull", TINY)
        options = ("--preset", "fast", "--detector", "cascade", "--dry-run")
        assert "not here" not in lora_prep("masks", images, *options).stderr


class TestPath:
    def test_here(self, pack, lora_prep):
        assert lora_prep("models", "path", "buffalo_l").stdout == f"{pack}\n"

    def test_not_here(self, home, lora_prep):
        failed = lora_prep("models", "path", "yunet", code=1)
        assert failed.stdout == ""
        assert "yunet is not here: `lora-prep models pull yunet` downloads it" in failed.stderr


class TestVerify:
    def test_all_that_are_here(self, server, lora_prep):
        lora_prep("models", "pull", TINY, "buffalo_sc", "--accept-license")
        lines = lora_prep("models", "verify").stdout.splitlines()
        assert [line.split()[:3] for line in lines] == [
            ["ok", "buffalo_sc:", "det_500m.onnx"],
            ["ok", "buffalo_sc:", "w600k_mbf.onnx"],
            ["ok", f"{TINY}:", "sam2_hiera_tiny.pt"],
        ]
        assert lines[0].endswith("is the one of when it was pulled")
        digest = hashlib.sha256(CHECKPOINT).hexdigest()
        assert lines[2].endswith(f"{digest} is the hub's, when it was pulled")

    def test_none_are_here(self, home, lora_prep):
        assert lora_prep("models", "verify").stdout == "no models are here\n"

    def test_damage_and_a_missing_model(self, pack, lora_prep):
        found = lora_prep("models", "verify", "buffalo_l", "yunet", code=1).stdout.splitlines()
        assert found[0].startswith("damaged  buffalo_l: det_10g.onnx ")
        assert found[0].endswith(" is not its publisher's")
        assert found[1].strip() == "-> lora-prep models rm buffalo_l, then pull it again"
        assert found[2] == "missing  yunet: face_detection_yunet_2023mar.onnx"

    def test_nothing_to_compare_with(self, pack, lora_prep):
        (pack / "det_10g.onnx").rename(pack / "genderage.onnx")
        digest = hashlib.sha256(b"x" * 1000).hexdigest()
        assert lora_prep("models", "verify").stdout == (
            f"unknown  buffalo_l: genderage.onnx {digest}, no hash is known\n"
        )

    def test_for_machines(self, pack, lora_prep):
        content = json.loads(lora_prep("models", "verify", "--json", code=1).stdout)
        assert content == {
            "schema": 1,
            "files": [
                {
                    "name": "buffalo_l",
                    "path": str(pack / "det_10g.onnx"),
                    "status": "damaged",
                    "sha256": hashlib.sha256(b"x" * 1000).hexdigest(),
                    "against": "its publisher's",
                }
            ],
        }


class TestRm:
    def test_deletes_what_it_named(self, pack, lora_prep):
        (pack / "notes.txt").touch()
        done = lora_prep("models", "rm", "buffalo_l", "--yes")
        assert done.stderr == f"{pack / 'det_10g.onnx'}\n"
        assert done.stdout == "deleted buffalo_l: 0.0 MB\n"
        assert [path.name for path in pack.iterdir()] == ["notes.txt"]

    def test_where_nobody_can_be_asked(self, pack, lora_prep):
        failed = lora_prep("models", "rm", "buffalo_l", code=2)
        assert "give --yes" in failed.stderr
        assert (pack / "det_10g.onnx").exists()

    def test_nothing_is_there(self, home, lora_prep):
        assert "yunet is not here" in lora_prep("models", "rm", "yunet", code=1).stderr

    @pytest.mark.parametrize(("answer", "code", "there"), [(b"y\n", 0, False), (b"n\n", 1, True)])
    def test_asks_at_a_terminal(self, home, pack, answer, code, there):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_prep", "models", "rm", "buffalo_l"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "HOME": str(home)},
        )
        os.write(ours, answer)
        _, shown = process.communicate(timeout=60)
        os.close(ours)
        os.close(theirs)
        assert process.returncode == code
        assert b"Delete these 1 files (0.0 MB)? [y/N]:" in shown
        assert (pack / "det_10g.onnx").exists() is there


def test_alone_it_shows_help(lora_prep):
    result = lora_prep("models", code=2)
    for name in ("list", "pull", "path", "verify", "rm"):
        assert f"\n  {name} " in result.stderr
