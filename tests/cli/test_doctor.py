import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lora_prep import doctor
from lora_prep.cli import main
from lora_prep.cli.doctor import presets
from lora_prep.doctor import Finding, Level, Probed, examine, guarded, probe
from lora_prep.probe import PROBES, onnx_session

BEST = {"best": ("buffalo_l", "facebook/sam2-hiera-large")}
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
GPU = {"name": "A100", "memory": 80 << 30, "bf16": True}


# ------------------------------------------------------------------ what stands in for a machine
def package(folder: Path, name: str, code: str) -> None:
    """A package that is imported before the real one."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


def distribution(folder: Path, name: str, version: str) -> None:
    """What an installer leaves of a distribution."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def models(home: Path) -> None:
    """Caches with the models of the preset `best`, and a pack whose download broke off."""
    packs = home / ".insightface" / "models"
    (packs / "buffalo_l").mkdir(parents=True)
    (packs / "buffalo_l" / "det_10g.onnx").write_bytes(b"")
    (packs / ".buffalo_sc-x.part").mkdir()
    repository = home / "hub" / "models--facebook--sam2-hiera-large"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "sam2_hiera_large.pt").write_bytes(b"")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


def healthy(**changed: Mapping[str, Any] | str) -> dict[str, Probed]:
    """What the probes tell where all is well, but for what is given: facts, or an error."""
    facts: dict[str, Mapping[str, Any]] = {
        "numpy": {"version": "2.4.6"},
        "pillow": {"version": "13.0", "features": {"AVIF": True, "WebP": True, "LCMS": True}},
        "opencv": {"version": "5.0"},
        "onnxruntime": {"version": "1.32", "providers": [CPU]},
        "torch": {"version": "2.15", "cuda": "13.2", "devices": [], "said": []},
        "torchvision": {"version": "0.29", "cuda": "13.2"},
        "sam2": {},
        "insightface": {"version": "2.1"},
        "onnx_session": {"active": [CPU]},
        "models": {
            "here": ["buffalo_l", "facebook/sam2-hiera-large"],
            "damaged": [],
            "packs_folder": "/",
            "hub_folder": "/",
            "offline": False,
            "license": True,
        },
        "embedded": {"mask": 9},
    }
    probes = {name: Probed(facts[name]) for name in doctor.PROBES}
    for name, change in changed.items():
        if isinstance(change, str):
            probes[name] = Probed(error=change)
        else:
            probes[name] = Probed({**facts[name], **change})
    return probes


def findings(
    monkeypatch: pytest.MonkeyPatch,
    probes: Mapping[str, Probed],
    data: Path | None = None,
    *,
    driver: bool = False,
) -> list[Finding]:
    monkeypatch.setattr(doctor, "_nvidia_driver", lambda: driver)
    monkeypatch.setattr(doctor, "probe", lambda _names: probes)
    return list(examine(BEST, data))


def bad(found: list[Finding]) -> list[Finding]:
    """Warnings and problems, but for disks: those are this machine's."""
    return [f for f in found if f.level is not Level.OK and f.topic != "disk"]


def only(found: list[Finding], topic: str) -> Finding:
    (one,) = [f for f in found if f.topic == topic]
    return one


def run_doctor(*args: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lora_prep", "doctor", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


# ------------------------------------------------------------------ the whole of it
def test_this_machine_is_well(tmp_path: Path) -> None:
    models(tmp_path)
    (tmp_path / "data" / "faces").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "data" / "faces" / "a.png")
    (tmp_path / "lora-prep.toml").write_text('[dataset]\nimages = "data/faces"\n')
    hub = str(tmp_path / "hub")
    home = {"HOME": str(tmp_path), "HF_HUB_CACHE": hub, "LORA_PREP_ACCEPT_LICENSE": "1"}
    done = run_doctor("--json", cwd=tmp_path, **home)
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    found = [Finding(**{**f, "level": Level(f["level"])}) for f in document["findings"]]
    assert [f for f in found if f.level is Level.PROBLEM] == []
    assert done.returncode == 0
    assert done.stderr == ""
    for name in (
        "numpy",
        "pillow",
        "torch",
        "torchvision",
        "sam2",
        "insightface",
        "albumentations",
    ):
        assert metadata.version(name) in only(found, name).message
    assert CPU in only(found, "onnxruntime").message
    assert only(found, "models").message == "buffalo_l, facebook/sam2-hiera-large"
    assert only(found, "preset best").message == "can run"
    assert "buffalo_sc, facebook/sam2-hiera-tiny" in only(found, "preset fast").message
    assert only(found, "preset embedded").level is Level.OK
    assert only(found, "config").message == str(tmp_path / "lora-prep.toml")
    assert only(found, "data set").message.startswith("1 images in ")


def test_broken_packages_are_findings(tmp_path: Path) -> None:
    fake = tmp_path / "site"
    package(fake, "torch", "raise OSError('libcudart.so.13: cannot open shared object file')")
    package(fake, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    package(fake, "insightface", "import os; os.abort()")
    package(fake, "cv2", "raise ImportError('libGL.so.1: cannot open shared object file')")
    distribution(fake, "onnxruntime", "1.98.0")
    distribution(fake, "onnxruntime-gpu", "1.99.0")
    distribution(fake, "opencv-python-headless", "4.1.0")
    (tmp_path / "data").mkdir()
    (tmp_path / "lora-prep.toml").write_text("[masks]\nmin-fac = 3\n")
    done = run_doctor(cwd=tmp_path, HOME=str(tmp_path), PYTHONPATH=str(fake))
    assert done.returncode == 1
    assert done.stderr == ""
    for line in (
        "cannot be imported: OSError: libcudart.so.13: cannot open shared object file",
        "operator torchvision::nms does not exist. torch",
        "uv pip install --reinstall torch torchvision",
        "insightface      cannot be imported: it ended Python with code -6",
        "apt-get install libgl1",
        "onnxruntime 1.98.0 and onnxruntime-gpu 1.99.0 are both installed",
        "uv pip uninstall onnxruntime && uv pip install --reinstall onnxruntime-gpu",
        "and opencv-python-headless 4.1.0 share their files",
        "preset best      cannot run: opencv, torch, torchvision, sam2, insightface",
        "preset embedded  cannot run: ImportError: libGL.so.1",
        "[masks] has no key 'min-fac'; did you mean 'min-face'?",
        "none are here yet",
    ):
        assert line in done.stdout
    assert "Traceback" not in done.stdout


def test_it_survives_a_broken_numpy(tmp_path: Path) -> None:
    fake = tmp_path / "site"
    for name in ("numpy", "torch", "insightface", "onnxruntime"):
        package(fake, name, "raise ImportError('wrong ABI')")
    done = run_doctor("--json", cwd=tmp_path, PYTHONPATH=str(fake))
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)["findings"]
    (numpy,) = [f for f in found if f["topic"] == "numpy"]
    assert numpy["level"] == "problem"
    assert "wrong ABI" in numpy["message"]
    assert numpy["fix"] == "uv pip install --reinstall numpy"


# ------------------------------------------------------------------ probes
def test_every_probe_is_asked_for() -> None:
    assert set(doctor.PROBES) == set(PROBES)


def test_what_imports_print_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "numpy", "print('{}'); __version__ = '3'")
    monkeypatch.syspath_prepend(tmp_path)
    assert probe(["numpy"]) == {"numpy": Probed({"version": "3"})}


def test_a_crash_costs_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "numpy", "__version__ = '3'")
    package(tmp_path, "cv2", "import sys; sys.stderr.write('bad bytes\\n'); sys.exit(3)")
    package(tmp_path, "PIL", "__version__ = '4'")
    (tmp_path / "PIL" / "Image.py").touch()
    (tmp_path / "PIL" / "features.py").write_text("def check(name): return name == 'webp'")
    monkeypatch.syspath_prepend(tmp_path)
    found = probe(["numpy", "opencv", "pillow"])
    assert found["numpy"].facts == {"version": "3"}
    assert found["opencv"] == Probed(error="it ended Python with code 3: bad bytes")
    assert found["pillow"].facts["version"] == "4"
    assert [name for name, has in found["pillow"].facts["features"].items() if has] == ["WebP"]


def test_an_import_that_hangs_costs_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "cv2", "import time; time.sleep(600)")
    package(tmp_path, "numpy", "__version__ = '3'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 3.0)
    found = probe(["opencv", "numpy"])
    assert found["opencv"] == Probed(error="it did not answer within 3 seconds")


def test_packages_are_those_of_this_process_not_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('a file of the user')")
    monkeypatch.chdir(tmp_path)
    assert probe(["numpy"])["numpy"].facts == {"version": np.__version__}


def test_onnx_runtime_starts_a_session() -> None:
    assert onnx_session()["active"][-1] == CPU


def test_models_are_found_where_the_back_ends_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models(tmp_path)
    broken = tmp_path / ".insightface" / "models" / "antelopev2"
    broken.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("LORA_PREP_ACCEPT_LICENSE", raising=False)
    assert probe(["models"])["models"].facts == {
        "here": ["buffalo_l", "facebook/sam2-hiera-large"],
        "damaged": [str(broken)],
        "packs_folder": str(tmp_path / ".insightface" / "models"),
        "hub_folder": str(tmp_path / "hub"),
        "offline": True,
        "license": False,
    }


# ------------------------------------------------------------------ findings
def test_all_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bad(findings(monkeypatch, healthy())) == []


def test_onnxruntime_beside_onnxruntime_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "onnxruntime", "1.32.0")
    distribution(tmp_path, "onnxruntime-gpu", "1.31.0")
    monkeypatch.syspath_prepend(tmp_path)
    (clash,) = bad(findings(monkeypatch, healthy()))
    assert (clash.topic, clash.level) == ("onnxruntime", Level.PROBLEM)
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.0 are both installed" in clash.message
    assert clash.fix.startswith(
        "uv pip uninstall onnxruntime && uv pip install --reinstall onnxruntime-gpu"
    )


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = healthy(sam2="ModuleNotFoundError: No module named 'sam2'")
    sam2, best = bad(findings(monkeypatch, probes))
    assert sam2 == Finding("sam2", Level.PROBLEM, "is not installed", "uv pip install sam2")
    assert (best.topic, best.level) == ("preset best", Level.PROBLEM)
    assert best.message == "cannot run: sam2 cannot be used"


def test_a_package_that_lacks_another(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = healthy(sam2="ModuleNotFoundError: No module named 'iopath'")
    sam2, _ = bad(findings(monkeypatch, probes))
    assert sam2.message == "cannot be imported: ModuleNotFoundError: No module named 'iopath'"
    assert sam2.fix == "uv pip install --reinstall sam2"


def test_torch_and_torchvision_for_different_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = bad(findings(monkeypatch, healthy(torchvision={"cuda": "12.8"})))
    assert (one.topic, one.level) == ("torchvision", Level.WARNING)
    assert one.message == "torch is built for CUDA 13.2, torchvision for CUDA 12.8"


def test_pillow_without_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = healthy(pillow={"features": {"AVIF": False, "WebP": True, "LCMS": False}})
    (one,) = bad(findings(monkeypatch, probes))
    assert (one.topic, one.level) == ("pillow", Level.WARNING)
    assert "without AVIF, LCMS" in one.message


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = healthy(
        torch={"devices": [GPU, {**GPU, "bf16": False}]}, onnx_session={"active": [CUDA, CPU]}
    )
    found = findings(monkeypatch, probes)
    assert bad(found) == []
    assert [f.message for f in found if f.topic == "gpu"] == [
        "cuda:0 is A100, 80.0 GiB, bfloat16",
        "cuda:1 is A100, 80.0 GiB, no bfloat16: SAM2 is slower",
    ]


@pytest.mark.parametrize(
    ("providers", "why", "fix"),
    [
        ([CPU], "is built without CUDA", "uv pip uninstall onnxruntime &&"),
        ([CUDA, CPU], "has CUDA, but cannot start it", "install the cuDNN and CUDA libraries"),
    ],
)
def test_a_gpu_that_onnx_runtime_does_not_use(
    monkeypatch: pytest.MonkeyPatch, providers: list[str], why: str, fix: str
) -> None:
    probes = healthy(torch={"devices": [GPU]}, onnxruntime={"providers": providers})
    (one,) = bad(findings(monkeypatch, probes))
    assert (one.topic, one.level) == ("gpu", Level.WARNING)
    assert why in one.message
    assert one.fix.startswith(fix)


def test_a_driver_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._nvidia_driver()


def test_a_driver_that_torch_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = healthy(torch={"said": ["The NVIDIA driver on your system is too old"]})
    (one,) = bad(findings(monkeypatch, probes, driver=True))
    assert (one.topic, one.level) == ("gpu", Level.WARNING)
    assert "driver on your system is too old" in one.message


def test_onnx_runtime_that_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one, best = bad(findings(monkeypatch, healthy(onnx_session="Fail: no provider")))
    assert (one.topic, one.message) == ("onnxruntime", "cannot start a model: Fail: no provider")
    assert best.level is Level.PROBLEM


@pytest.mark.parametrize(
    ("offline", "ending"), [(True, ", and HF_HUB_OFFLINE is set"), (False, "")]
)
def test_models_that_are_not_here(
    monkeypatch: pytest.MonkeyPatch, offline: bool, ending: str
) -> None:
    here = {"here": ["facebook/sam2-hiera-large"], "offline": offline}
    (one,) = bad(findings(monkeypatch, healthy(models=here)))
    assert (one.topic, one.level) == ("preset best", Level.WARNING)
    assert one.message == f"its models are not here yet: buffalo_l{ending}"
    assert one.fix.startswith("lora-prep models pull buffalo_l (needs a network)")


def test_a_licence_that_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = bad(findings(monkeypatch, healthy(models={"license": False})))
    assert (one.topic, one.level) == ("preset best", Level.WARNING)
    assert one.message.startswith("the licence of buffalo_l (non-commercial research only)")
    assert one.fix.startswith("lora-prep models pull buffalo_l asks for it")


def test_a_pack_whose_download_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = bad(findings(monkeypatch, healthy(models={"damaged": ["/x/antelopev2"]})))
    assert (one.topic, one.level) == ("models", Level.PROBLEM)
    assert "delete /x/antelopev2" in one.fix


def test_an_embedded_preset_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = bad(findings(monkeypatch, healthy(embedded="BackendError: no cascade")))
    assert (one.topic, one.level) == ("preset embedded", Level.PROBLEM)
    assert "no cascade" in one.message


# ------------------------------------------------------------------ disks
def disk(found: list[Finding]) -> Finding:
    (one,) = [f for f in found if f.topic == "disk" and f.message.startswith("data: ")]
    return one


def test_free_space_where_the_masks_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "DATA_BYTES", 1)
    one = disk(findings(monkeypatch, healthy(), tmp_path / "not" / "yet"))
    assert one.level is Level.OK
    assert one.message.endswith(f"GiB free in {tmp_path}")


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DATA_BYTES", 1 << 60)
    one = disk(findings(monkeypatch, healthy(), tmp_path))
    assert one.level is Level.WARNING
    assert one.fix == "make room: 1073741824.0 GiB should do"


def test_a_file_where_the_folder_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "masks").touch()
    one = disk(findings(monkeypatch, healthy(), tmp_path / "masks"))
    assert one.level is Level.PROBLEM


# ------------------------------------------------------------------ the command
def test_what_nobody_expected_is_a_finding() -> None:
    def look() -> list[Finding]:
        raise ValueError("what?")

    (one,) = guarded("disk", look)
    assert (one.topic, one.level) == ("disk", Level.PROBLEM)
    assert one.message == "cannot be looked at: ValueError: what?"


def test_facts_that_are_missing_do_not_end_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = {**healthy(), "pillow": replace(healthy()["pillow"], facts={})}
    found = findings(monkeypatch, probes)
    assert only(found, "packages").level is Level.PROBLEM
    assert only(found, "preset embedded").level is Level.OK


def test_presets_that_need_models() -> None:
    assert presets() == {
        "best": ("buffalo_l", "facebook/sam2-hiera-large"),
        "fast": ("buffalo_sc", "facebook/sam2-hiera-tiny"),
    }


@pytest.mark.parametrize(
    ("config", "images", "level", "message"),
    [
        (None, None, "ok", "none here; `lora-prep init` starts one"),
        (None, "data/faces", "warning", "0 images in "),
        (None, "data", "warning", "there is no image in"),
        ('[dataset]\nimages = "p"\n', None, "warning", "there is no folder"),
        ('[dataset]\nimages = "p"\nmasks = "p/m"\n', "p", "warning", "there is no image in"),
    ],
)
def test_the_data_set_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str | None,
    images: str | None,
    level: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "probe", lambda _names: healthy())
    if config:
        (tmp_path / "lora-prep.toml").write_text(config)
    if images:
        (tmp_path / images).mkdir(parents=True)
    result = CliRunner().invoke(main, ["doctor", "--json"])
    found = json.loads(result.stdout)["findings"]
    (one,) = [f for f in found if f["topic"] == "data set"]
    assert one["level"] == level
    assert one["message"].startswith(message)


def test_a_configuration_that_is_wrong_for_any_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "probe", lambda _names: healthy())
    (tmp_path / "lora-prep.toml").write_text("[validate]\nbogus = 1\n")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "[validate] has no key 'bogus'" in result.stdout
    assert "problems: 1, " in result.stdout.splitlines()[-1]
