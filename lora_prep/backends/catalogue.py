"""The models that lora-prep fetches: where each comes from, under which licence, and what is here.

Nothing but `pull` asks the network. What other programs keep in the same caches is left alone.
"""

import difflib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_prep import digests
from lora_prep.backends import sam2_model, sface, weights, yunet
from lora_prep.errors import BackendError, UsageError

SAM2_SIZES = {
    "tiny": 156_000_000,
    "small": 184_000_000,
    "base-plus": 323_000_000,
    "large": 898_000_000,
}
"""Bytes of a checkpoint, rounded."""

PACK_FILES: dict[str, str | None] = {
    "det_10g.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    "det_2.5g.onnx": "041f73f47371333d1d17a6fee6c8ab4e6aecabefe398ff32cca4e2d5eaee0af9",
    "det_500m.onnx": "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a",
    "scrfd_10g_bnkps.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    "w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    "w600k_mbf.onnx": "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
    "glintr100.onnx": "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
    "1k3d68.onnx": None,
    "2d106det.onnx": None,
    "genderage.onnx": None,
}
"""Files of insightface's packs, and the SHA-256 of those that insightface's own server checks (see
`weights.PACKS`): a pack that was unpacked by hand can be verified, too."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be fetched: one file on the hub, or an archive of insightface's."""

    name: str
    """As `--face-model`, `--sam2-model` and `lora-prep models` take it."""
    use: str
    license: str
    size: int
    """Bytes to download; those of SAM2 are rounded."""
    sha256: str | None = None
    """Of the download, where it is known beforehand; the hub tells the others itself."""
    repo: str = ""
    """Hugging Face repository; empty for a pack."""
    filename: str = ""

    @property
    def is_pack(self) -> bool:
        """Whether it is one of insightface's."""
        return not self.repo

    @property
    def source(self) -> str:
        """Where it is downloaded from."""
        if self.is_pack:
            return f"{weights.RELEASES}{self.name}.zip"
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.filename)


@dataclass(frozen=True, slots=True)
class Check:
    """What became of a file that was read again."""

    path: Path
    status: str
    """`ok`, `damaged`, `missing`, or `unknown` where there is nothing to compare it with."""
    against: str
    """Whose SHA-256 it was compared with."""
    sha256: str = ""


def _models() -> Iterator[Model]:
    for name, pack in weights.PACKS.items():
        yield Model(name, "faces", "non-commercial research", pack.size, pack.sha256)
    for repo, (_, filename) in sam2_model.HUB.items():
        size = SAM2_SIZES[repo.rpartition("hiera-")[2]]
        yield Model(repo, "masks", "Apache-2.0", size, repo=repo, filename=filename)
    yield Model("yunet", "faces", "MIT", 232_589, yunet.SHA256, yunet.REPO, yunet.FILENAME)
    yield Model(
        "sface", "identity", sface.LICENSE, 38_696_353, sface.SHA256, sface.REPO, sface.FILENAME
    )


MODELS = {model.name: model for model in _models()}


def named(name: str) -> Model:
    """The model of that name. Raises UsageError where there is none."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MODELS)}"
    raise UsageError(f"there is no model {name}: {hint}")


def locate(model: Model) -> Path | None:
    """The pack's directory or the checkpoint's file, if it is here."""
    if not model.is_pack:
        return weights.cached_hub_file(model.repo, model.filename)
    try:
        return weights.with_onnx_files(weights.pack_folder(model.name))
    except BackendError:
        return None


def pull(model: Model) -> Path:
    """The model's place, after a download if it was not here.

    Raises BackendError where it cannot be had, or its licence has not been accepted.
    """
    if model.is_pack:
        return weights.fetch_pack(model.name)
    advice = (
        f"On a machine with a network run `lora-prep models pull {model.name}`, and copy the "
        f"directory {weights.hub_folder(model.repo).name} from its cache into this one"
    )
    return weights.hub_file(model.repo, model.filename, advice, expected=model.sha256)


def verify(model: Model) -> Iterator[Check]:
    """Read the model's files again and compare their hashes; one missing file if it is not here."""
    place = locate(model)
    if place is None:
        folder = weights.pack_folder(model.name)
        yield Check(folder if model.is_pack else Path(model.filename), "missing", "")
    elif model.is_pack:
        yield from _verify_pack(weights.pack_folder(model.name))
    else:
        name = place.resolve().name
        if model.sha256:
            yield _compared(place, model.sha256, "its publisher's")
        elif digests.is_sha256(name):
            yield _compared(place, name, "the hub's, when it was pulled")
        else:
            yield _compared(place, None, "")


def files(model: Model) -> list[Path]:
    """What `remove` deletes: the files that lora-prep, insightface or the hub put there for it.

    Raises BackendError where the pack's directory is a link, which neither of them makes.
    """
    found = _pack_files(model.name) if model.is_pack else _hub_files(model)
    return sorted(path for path in found if path.exists() or path.is_symlink())


def remove(model: Model) -> list[Path]:
    """Delete a model's files, and its directory where nothing else is in it. The files."""
    gone = files(model)
    for path in gone:
        path.unlink()
    if model.is_pack:
        _remove_empty(weights.pack_folder(model.name))
    elif not _snapshot_files(model.repo):
        shutil.rmtree(weights.hub_folder(model.repo), ignore_errors=True)
    return gone


# ---------------------------------------------------------------------------- packs
def _verify_pack(folder: Path) -> Iterator[Check]:
    recorded = _recorded(folder)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx")}
    for name in sorted(present | set(recorded)):
        path = folder / name
        published = PACK_FILES.get(path.name)
        if not path.is_file():
            yield Check(path, "missing", "")
        elif published:
            yield _compared(path, published, "its publisher's")
        else:
            yield _compared(path, recorded.get(name), "the one of when it was pulled")


def _recorded(folder: Path) -> dict[str, str]:
    """Hashes of a pack's files as they were unpacked, by their names; empty without a record."""
    try:
        lines = (folder / weights.RECORD).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.split("  ", 1) for line in lines if "  " in line)
    return {name: digest for digest, name in pairs}


def _pack_files(pack: str) -> Iterator[Path]:
    folder = weights.pack_folder(pack)
    if folder.is_symlink():
        raise BackendError(
            f"{folder} is a link to {folder.readlink()}, which neither lora-prep nor insightface "
            "has made: remove it yourself"
        )
    recorded = _recorded(folder)
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        known = name in recorded if recorded else path.name in PACK_FILES
        if path.is_file() and (known or name == weights.RECORD):
            yield path
    for ending in (".zip", ".zip.part", ".zip.part.etag"):
        yield folder.with_name(f"{folder.name}{ending}")


def _remove_empty(folder: Path) -> None:
    """Remove the directories that have nothing in them, from the leaves up."""
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


# ---------------------------------------------------------------------------- the hub's cache
def _hub_files(model: Model) -> Iterator[Path]:
    """A file's entries in all snapshots, and the content behind those that nothing else needs."""
    snapshots = _snapshot_files(model.repo)
    ours = [path for path in snapshots if path.name == model.filename]
    needed = {path.resolve() for path in snapshots if path not in ours}
    yield from ours
    yield from {path.resolve() for path in ours if path.is_symlink()} - needed
    if len(ours) == len(snapshots):
        yield from weights.hub_folder(model.repo).glob("blobs/*.incomplete*")


def _snapshot_files(repo: str) -> list[Path]:
    """A repository's files in the cache, of all revisions."""
    found = weights.hub_folder(repo).glob("snapshots/*/**/*")
    return [path for path in found if not path.is_dir()]


# ---------------------------------------------------------------------------- hashes
def _compared(path: Path, expected: str | None, against: str) -> Check:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is None:
        return Check(path, "unknown", "", found)
    return Check(path, "ok" if found == expected else "damaged", against, found)
