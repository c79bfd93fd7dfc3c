import hashlib
import shutil

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants

from lora_prep.backends import SegmenterSpec, sam2_model
from lora_prep.backends.sam2 import Sam2Segmenter, identity
from lora_prep.errors import BackendError
from lora_prep.types import Face, Region
from tests.fakes import loopback
from tests.fakes.tiny_sam2 import tiny_config, write_tiny_sam2

TINY = "facebook/sam2-hiera-tiny"
COMMIT = "c" * 40


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models get slower with more threads, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def files(tmp_path):
    return write_tiny_sam2(tmp_path / "tiny")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the model hub, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        loopback.closed() + "/{repo_id}/resolve/{revision}/{filename}",
    )
    return tmp_path / "hub"


def put_in_cache(hub, repo, filename, checkpoint):
    """Move a file into the hub's cache, laid out as `hf download` does; the file's hash."""
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    folder = hub / f"models--{repo.replace('/', '--')}"
    for name in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    checkpoint.rename(folder / "blobs" / digest)
    (folder / "snapshots" / COMMIT / filename).symlink_to(f"../../blobs/{digest}")
    return digest


class TestHub:
    def test_ids_are_sam2s_own(self):
        from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

        assert HF_MODEL_ID_TO_FILENAMES == sam2_model.HUB

    @pytest.mark.parametrize("repo", list(sam2_model.HUB))
    def test_a_cached_checkpoint_and_the_configuration_that_sam2_ships(self, hub, tmp_path, repo):
        config, filename = sam2_model.HUB[repo]
        (tmp_path / filename).write_bytes(b"weights")
        digest = put_in_cache(hub, repo, filename, tmp_path / filename)
        found = sam2_model.find(SegmenterSpec(model=repo))
        assert found.checkpoint.read_bytes() == b"weights"
        assert found.config.as_posix().endswith(f"/sam2/{config}")
        assert f"{filename} sha256={digest} " in identity(SegmenterSpec(model=repo))
        sam2_model._refuse_foreign_code(found.config)

    def test_a_real_sized_model_from_the_cache(self, hub, tmp_path):
        """The released tiny model's size and layout, with random weights in half precision."""
        from sam2.build_sam import build_sam2

        config, filename = sam2_model.HUB[TINY]
        weights = build_sam2(config, device="cpu").half().state_dict()
        torch.save({"model": weights}, tmp_path / filename)
        put_in_cache(hub, TINY, filename, tmp_path / filename)
        model = Sam2Segmenter(SegmenterSpec(model=TINY, device="cpu", dtype="float32"))
        assert model.describe() == f"sam2 {TINY} at 1024×1024 on cpu, float32"
        prepared = model.prepare(np.full((90, 120, 3), 128, np.uint8))
        face = Face((30.0, 20.0, 80.0, 70.0), 0.9)
        (answer,) = model.segment([prepared], [[face]], Region.FACE)
        (mask,) = model.finish(prepared, answer)
        assert mask.shape == (90, 120)

    def test_without_a_network_it_says_what_to_do(self, hub):
        for use in (Sam2Segmenter, identity):
            with pytest.raises(BackendError) as raised:
                use(SegmenterSpec(device="cpu"))
            message = str(raised.value)
            assert f"sam2_hiera_large.pt is not in {hub}" in message
            assert "hf download facebook/sam2-hiera-large sam2_hiera_large.pt" in message
            assert "--sam2-model FILE" in message
            assert "--preset embedded" in message


class TestFind:
    def test_a_checkpoint_and_its_configuration(self, files):
        spec = SegmenterSpec(model=str(files[0]), config=str(files[1]))
        assert sam2_model.find(spec) == sam2_model.Files(*files)

    @pytest.mark.parametrize(
        "name", ["configs/sam2.1/sam2.1_hiera_b+.yaml", "sam2.1_hiera_b+.yaml", "sam2.1_hiera_b+"]
    )
    def test_a_configuration_that_sam2_ships(self, files, name):
        found = sam2_model.find(SegmenterSpec(model=str(files[0]), config=name))
        assert found.config.as_posix().endswith("/sam2/configs/sam2.1/sam2.1_hiera_b+.yaml")

    def test_the_configuration_of_a_released_checkpoints_name(self, files):
        renamed = files[0].rename(files[0].with_name("sam2.1_hiera_small.pt"))
        found = sam2_model.find(SegmenterSpec(model=str(renamed)))
        assert found.config.name == "sam2.1_hiera_s.yaml"

    def test_no_configuration(self, files):
        with pytest.raises(BackendError, match=r"which configuration .*tiny\.pt.*--sam2-config"):
            sam2_model.find(SegmenterSpec(model=str(files[0])))

    def test_an_unknown_configuration(self, files):
        with pytest.raises(BackendError, match=r"no file no\.yaml, .*sam2_hiera_t\.yaml"):
            sam2_model.find(SegmenterSpec(model=str(files[0]), config="no.yaml"))

    def test_an_unknown_model(self):
        with pytest.raises(BackendError, match=r"no file facebook/sam3.*facebook/sam2-hiera-tiny"):
            sam2_model.find(SegmenterSpec(model="facebook/sam3"))

    def test_a_directory_with_both(self, files):
        folder = files[0].parent
        assert sam2_model.find(SegmenterSpec(model=str(folder))) == sam2_model.Files(*files)

    def test_a_directory_with_a_released_checkpoint_only(self, files):
        files[1].unlink()
        renamed = files[0].rename(files[0].with_name("sam2_hiera_base_plus.pt"))
        found = sam2_model.find(SegmenterSpec(model=str(renamed.parent)))
        assert (found.checkpoint, found.config.name) == (renamed, "sam2_hiera_b+.yaml")

    @pytest.mark.parametrize("suffix", [".pt", ".yaml"])
    def test_a_directory_that_leaves_a_choice(self, files, suffix):
        (files[0].parent / f"other{suffix}").touch()
        with pytest.raises(BackendError, match=rf"2 files match .*\*\{suffix}"):
            sam2_model.find(SegmenterSpec(model=str(files[0].parent)))

    def test_a_directory_without_a_checkpoint(self, files):
        files[0].unlink()
        with pytest.raises(BackendError, match="0 files match"):
            sam2_model.find(SegmenterSpec(model=str(files[1].parent)))


def load(checkpoint, config):
    return sam2_model.load(sam2_model.Files(checkpoint, config), "cpu")


class TestLoad:
    def test_feature_sizes_follow_the_image_size(self, files):
        predictor = load(*files)
        assert predictor._bb_feat_sizes == [(64, 64), (32, 32), (16, 16)]
        assert not predictor.model.training

    def test_odd_characters_in_the_path(self, files, tmp_path):
        folder = shutil.copytree(files[0].parent, tmp_path / "a=b, [c] ü+ ${d}")
        assert load(folder / "tiny.pt", folder / "tiny.yaml").model.image_size == 256

    def test_a_relative_path(self, files, monkeypatch):
        monkeypatch.chdir(files[1].parent)
        path = files[1].relative_to(files[1].parent)
        assert load(files[0], path).model.image_size == 256

    def test_half_precision(self, files):
        content = torch.load(files[0], weights_only=True)
        halves = {name: value.half() for name, value in content["model"].items()}
        torch.save({"model": halves}, files[0])
        assert {p.dtype for p in load(*files).model.parameters()} == {torch.float32}

    def test_a_truncated_checkpoint(self, files):
        content = files[0].read_bytes()
        files[0].write_bytes(content[: len(content) // 2])
        with pytest.raises(BackendError, match=r"cannot load .*tiny\.pt .*is damaged"):
            load(*files)

    @pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
    def test_a_file_that_is_no_checkpoint(self, files, content):
        files[0].write_bytes(content)
        with pytest.raises(BackendError, match=r"cannot load .*tiny\.pt"):
            load(*files)

    def test_missing_and_unexpected_weights(self, files):
        content = torch.load(files[0], weights_only=True)["model"]
        removed = content.pop("no_mem_embed")
        torch.save({"model": content}, files[0])
        with pytest.raises(BackendError, match=r"tiny\.pt.*Missing key.*no_mem_embed"):
            load(*files)
        torch.save({"model": {**content, "no_mem_embed": removed, "more": removed}}, files[0])
        with pytest.raises(BackendError, match=r"tiny\.pt.*Unexpected key.*more"):
            load(*files)

    def test_a_checkpoint_that_would_run_code(self, files, tmp_path):
        class Evil:
            def __reduce__(self):
                return type(tmp_path).touch, (tmp_path / "evil",)

        torch.save({"model": {"no_mem_embed": Evil()}}, files[0])
        with pytest.raises(BackendError, match=r"cannot load .*tiny\.pt"):
            load(*files)
        assert not (tmp_path / "evil").exists()


class TestForeignCode:
    def load_with(self, files, change):
        content = tiny_config()
        change(content)
        files[1].write_text(yaml.safe_dump(content))
        return load(*files)

    @pytest.mark.parametrize(
        "target",
        [
            "os.mkdir",
            "builtins.exec",
            "torch.hub.load",
            "torch.load",
            "torch.nn.functional.relu",
            "torch.nn.modules.module.torch.hub.load",
            "torch.nn.Sequential.load_state_dict",
            "sam2.build_sam.build_sam2",
            "sam2.build_sam.os.system",
            "sam2.modeling.sam2_base.torch.hub.load",
            "sam2.modeling.sam2_base.torch.nn.Module",
            "sam2.modeling.backbones.hieradet.partial",
            "sam2.modeling.no_such_module.Thing",
            "sam2.modeling.",
            "${oc.env:HOME}",
            "",
            7,
        ],
    )
    def test_other_targets_are_refused(self, files, target):
        def change(content):
            content["model"]["memory_attention"]["layer"]["self_attention"]["_target_"] = target

        with pytest.raises(BackendError, match=r"tiny\.yaml is refused"):
            self.load_with(files, change)

    def test_nothing_is_run(self, files, tmp_path):
        def change(content):
            content["more"] = [{"_target_": "os.mkdir", "_args_": [str(tmp_path / "evil")]}]
            content["model"]["num_maskmem"] = content["more"][0]

        with pytest.raises(BackendError, match=r"would run `os\.mkdir`"):
            self.load_with(files, change)
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("defaults", ["/etc/other"]),
            ("hydra", {"searchpath": ["file:///tmp"]}),
            ("more", "${oc.decode:'{_target_: os.mkdir}'}"),
            ("more", {"deep": ["${model}"]}),
        ],
    )
    def test_what_could_bring_in_targets_is_refused(self, files, key, value):
        with pytest.raises(BackendError, match="could load other code"):
            self.load_with(files, lambda content: content.update({key: value}))

    def test_escapes_do_not_hide_an_interpolation(self, files):
        files[1].write_text(files[1].read_text() + '\nmore: "\\x24\\u007bmodel}"\n')
        with pytest.raises(BackendError, match="could load other code"):
            load(*files)

    def test_python_objects_in_the_yaml(self, files, tmp_path):
        evil = f"!!python/object/apply:os.mkdir ['{tmp_path}/evil']"
        files[1].write_text(f"model:\n  _target_: {evil}\n")
        with pytest.raises(BackendError, match="is no readable YAML"):
            load(*files)
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize("text", ["", "[]", "model: 3", "other: {}", "\tx"])
    def test_a_file_that_is_no_configuration(self, files, text):
        files[1].write_text(text)
        with pytest.raises(BackendError, match=r"tiny\.yaml is no"):
            load(*files)

    def test_modules_of_torch_are_allowed(self, files):
        def change(content):
            content["model"]["memory_attention"]["layer"]["self_attention"] = {
                "_target_": "torch.nn.Identity"
            }

        # it gets past the check, and fails where it should: omegaconf wants sam2's arguments
        with pytest.raises(BackendError, match="Missing key"):
            self.load_with(files, change)
