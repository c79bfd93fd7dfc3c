"""Finding and fetching model files.

Two rules: without a network, say so within seconds; and never leave a half-written model where the
next run would find it.
"""

import logging
import os
import re
import shutil
import stat
import tempfile
import urllib.error
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from lora_prep.backends import download, licenses
from lora_prep.digests import is_sha256, sha256
from lora_prep.errors import BackendError

RELEASES = "https://github.com/deepinsight/insightface/releases/download/model-zoo/"
"""insightface's own address for its packs, `insightface.utils.storage` has the same; but to read
it is to import ONNX Runtime."""

MAX_BYTES = 1 << 30
"""The largest checkpoint is 898 MB, the largest pack 407 MB unpacked; no file may be larger."""

RECORD = "SHA256SUMS"
"""Hashes of a pack's files as they were unpacked, in the format of sha256sum."""


@dataclass(frozen=True, slots=True)
class Pack:
    """The archive of a pack."""

    sha256: str
    size: int
    """In bytes."""


PACKS = {
    "buffalo_l": Pack(
        "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f", 288_621_354
    ),
    "buffalo_m": Pack(
        "d98264bd8f2dc75cbc2ddce2a14e636e02bb857b3051c234b737bf3b614edca9", 275_951_529
    ),
    "buffalo_s": Pack(
        "d85a87f503f691807cd8bb97128bdf7a0660326cd9cd02657127fa978bab8b5e", 127_607_557
    ),
    "buffalo_sc": Pack(
        "57d31b56b6ffa911c8a73cfc1707c73cab76efe7f13b675a05223bf42de47c72", 14_969_382
    ),
    "antelopev2": Pack(
        "8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5", 360_662_982
    ),
}
"""insightface's packs for faces. The hashes are those that insightface's own server checks
(deepinsight/insightface: server/backend/insightface_server/models/packages.py); buffalo_s is not in
that table, its hash is the one that other projects agree on."""

DEFAULT_PACK = "buffalo_l"

_log = logging.getLogger(__name__)

_planning: ContextVar[list[str] | None] = ContextVar("planning", default=None)
"""While nothing may be downloaded: the models that are not here."""


class NotHere(BackendError):
    """A model is not here, and this is a dry run, which downloads nothing."""


@contextmanager
def no_downloads() -> Iterator[list[str]]:
    """Within it, what would have to be downloaded raises NotHere and is listed instead."""
    missing: list[str] = []
    before = _planning.set(missing)
    try:
        yield missing
    finally:
        _planning.reset(before)


def refuse_in_a_plan(model: str, missing: str) -> None:
    """Raise NotHere where nothing may be downloaded: to be called before every download."""
    listed = _planning.get()
    if listed is None:
        return
    if model not in listed:
        listed.append(model)
    raise NotHere(
        f"{missing}, and a dry run downloads nothing: run it without --dry-run, or "
        "`lora-prep models pull` first"
    )


# ---------------------------------------------------------------------------- the model hub
def cached_hub_file(repo: str, filename: str) -> Path | None:
    """A file of a Hugging Face repository, if it is in the local cache."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repo, filename)
    return Path(cached) if isinstance(cached, str) else None


def hub_file(repo: str, filename: str, advice: str, *, expected: str | None = None) -> Path:
    """A file of a Hugging Face repository: from the local cache, else downloaded into it.

    Honours HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HUB_ETAG_TIMEOUT.
    huggingface_hub retries an unreachable server for 23 seconds, so one quick question comes first;
    and it does not resume, so large files are fetched here, and it is left to file them.
    `expected` is the SHA-256 that is known for the file; else the hub's own is.
    Raises BackendError, with `advice` on what else to do, where the file cannot be had.
    """
    cached = cached_hub_file(repo, filename)
    if cached:
        return cached
    import huggingface_hub
    from huggingface_hub import constants

    missing = f"{repo}/{filename} is not in {constants.HF_HUB_CACHE}"
    refuse_in_a_plan(repo, missing)
    if constants.HF_HUB_OFFLINE:
        raise BackendError(f"{missing}, and HF_HUB_OFFLINE forbids to download it. {advice}")
    own_limit = os.environ.get("HF_HUB_ETAG_TIMEOUT")
    limit = constants.HF_HUB_ETAG_TIMEOUT if own_limit else download.ANSWER_SECONDS
    url = huggingface_hub.hf_hub_url(repo, filename)
    try:
        about = download.within(
            limit, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=limit)
        )
        if about.etag and is_sha256(about.etag):
            _fetch_blob(repo, url, about, expected)
        path = Path(huggingface_hub.hf_hub_download(repo, filename))
        if expected and sha256(path) != expected:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise ValueError(f"its sha256 was not {expected}: it was deleted")
    except Exception as error:
        raise BackendError(
            f"{missing}, and {constants.ENDPOINT} does not give it: {download.reason(error)}. "
            f"{advice}"
        ) from error
    return path


def hub_folder(repo: str) -> Path:
    """Where the hub's cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _fetch_blob(repo: str, url: str, about: Any, expected: str | None) -> None:
    """Put a large file's content where the hub's cache keeps it, under its SHA-256."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if expected and about.etag != expected:
        raise ValueError(f"the file there has the sha256 {about.etag}, not {expected}")
    blobs = hub_folder(repo) / "blobs"
    blob = blobs / about.etag
    part = blob.with_name(f"{about.etag}.incomplete")
    with download.alone(blobs):
        if not blob.exists():
            download.fetch(
                url,
                part,
                min(about.size or MAX_BYTES, MAX_BYTES),
                sha256=about.etag,
                headers=build_hf_headers(),
                trusted=urlsplit(constants.ENDPOINT).hostname or "",
                title=url.rpartition("/")[2],
            )
            part.replace(blob)


# ---------------------------------------------------------------------------- insightface's packs
def pack_folder(name: str) -> Path:
    """Where insightface itself keeps a pack: in ~/.insightface/models."""
    return Path("~/.insightface/models").expanduser() / name


def is_licensed(model: str) -> bool:
    """Whether `face_pack` wants insightface's licence accepted: for its packs, given by name."""
    return model in PACKS and not Path(model).is_dir()


def face_pack(model: str) -> Path:
    """The directory with the ONNX files of an insightface pack, given by name or directory.

    A pack's name is looked up in ~/.insightface/models, where insightface itself keeps packs.
    insightface's own packs are downloaded into it from its release page where they are missing,
    and used by name only once their licence is accepted (see `licenses`). insightface's own
    download has no timeout, checks no hash and takes a half-unpacked directory for a pack.
    Raises BackendError where there is no pack and none is to be had.
    """
    given = Path(model).expanduser()
    if given.is_dir():
        return with_onnx_files(given)
    if not re.fullmatch(r"\w[\w.-]*", model):
        raise BackendError(
            f"no directory {model}: give --face-model the directory that holds a pack's .onnx "
            "files, or the name of a pack, such as buffalo_l"
        )
    if model in PACKS:
        return fetch_pack(model)
    folder = pack_folder(model)
    if not folder.is_dir():
        raise BackendError(
            f"there is no pack {model} in {folder.parent}, and insightface has none of that name: "
            f"its packs are {', '.join(PACKS)}"
        )
    return with_onnx_files(folder)


def fetch_pack(name: str) -> Path:
    """The directory with the ONNX files of one of insightface's own packs, downloaded if need be.

    Raises BackendError where its licence has not been accepted, or it is not to be had.
    """
    licenses.require(name)
    folder = pack_folder(name)
    if not folder.is_dir():
        refuse_in_a_plan(name, f"insightface's pack {name} is not in {folder.parent}")
        _download_pack(name, folder.parent)
    return with_onnx_files(folder)


def with_onnx_files(folder: Path) -> Path:
    """`folder`, or the one directory in it that has the ONNX files, as in antelopev2's archive.

    Raises BackendError where there are none.
    """
    if any(folder.glob("*.onnx")):
        return folder
    nested = sorted({path.parent for path in folder.glob("*/*.onnx")})
    if len(nested) == 1:
        return nested[0]
    raise BackendError(
        f"{folder} is no insightface pack: there is no .onnx file in it. If an earlier download "
        "broke off, delete the directory and run again"
    )


def unpack(archive: Path, folder: Path, limit: int) -> None:
    """Unpack the model files of a ZIP archive into `folder`, which must not exist.

    Files that are no ONNX model, manifest or licence are left out.
    Raises ValueError for an entry that would land outside `folder`, for a link, for more than
    `limit` bytes in all, and zipfile.BadZipFile for a damaged archive.
    """
    folder.mkdir()
    with zipfile.ZipFile(archive) as file:
        entries = file.infolist()
        if sum(entry.file_size for entry in entries) > limit:
            raise ValueError(f"it unpacks to more than {limit >> 20} MiB")
        for entry in entries:
            name = PurePosixPath(entry.filename)
            if name.is_absolute() or ".." in name.parts or re.search(r"[\\:]", entry.filename):
                raise ValueError(f"entry {entry.filename!r} would land outside the pack")
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise ValueError(f"entry {entry.filename!r} is a link")
            if entry.is_dir() or name.suffix.lower() not in {".onnx", ".json", ".license"}:
                continue
            target = folder.joinpath(*name.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open(entry) as source, target.open("xb") as output:
                shutil.copyfileobj(source, output, 1 << 20)


def _download_pack(name: str, models: Path) -> None:
    pack = PACKS[name]
    url = f"{RELEASES}{name}.zip"
    part = models / f"{name}.zip.part"
    try:
        with download.alone(models):
            if (models / name).is_dir():  # another process was faster
                return
            _log.warning("downloading %s", url)
            download.fetch(url, part, pack.size, sha256=pack.sha256, title=f"{name}.zip")
            try:
                _install(part, models / name)
            finally:
                part.unlink()
    except (*download.FAILURES, zipfile.BadZipFile) as error:
        why = download.reason(error)
        if isinstance(error, urllib.error.HTTPError) and error.code == 404:
            why = "it is not there (404)"
        raise BackendError(
            f"insightface's pack {name} is not in {models}, and could not be downloaded from "
            f"{url}: {why}. Download that file elsewhere and unpack it into {models / name}, or "
            "give the directory of an unpacked pack with --face-model DIR, or, but not for "
            "`embed`, which needs landmarks, use the detector that needs no download with "
            "--preset embedded"
        ) from error


def _install(archive: Path, target: Path) -> None:
    """Unpack an archive, write down the hashes of its files, and only then give it its name."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        folder = Path(scratch, target.name)
        unpack(archive, folder, MAX_BYTES)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
        (folder / RECORD).write_text("".join(lines), encoding="utf-8")
        folder.rename(target)
