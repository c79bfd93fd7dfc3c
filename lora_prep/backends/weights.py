"""Finding and fetching model files.

Two rules: without a network, say so within seconds; and never leave a half-written model where the
next run would find it.
"""

import hashlib
import http.client
import logging
import os
import re
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import TypeVar

from tqdm import tqdm

from lora_prep.errors import BackendError

T = TypeVar("T")

PROBE_SECONDS = 3.0
"""How long the model hub may take for its first answer; HF_HUB_ETAG_TIMEOUT overrides it."""

TIMEOUT_SECONDS = 6.0
"""How long insightface's server may take to answer, and between two pieces of the answer."""

MAX_ARCHIVE_BYTES = 1 << 30
"""insightface's largest pack is 407 MB unpacked; an archive, and what is in it, may be this big."""

_log = logging.getLogger(__name__)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex. Unchanged files are read once a process.

    A file in the model hub's cache is a link to a blob that is named by its SHA-256 (large files
    are; `hub_file` verified it when it fetched it), so that one is not read at all.
    """
    if path.is_symlink():
        blob = path.readlink()
        if blob.parent.name == "blobs" and _is_sha256(blob.name):
            return blob.name
    info = path.stat()
    return _read_sha256(path.resolve(), info.st_size, info.st_mtime_ns)


def hub_file(repo: str, filename: str, advice: str) -> Path:
    """A file of a Hugging Face repository: from the local cache, else downloaded into it.

    Honours HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HUB_ETAG_TIMEOUT.
    huggingface_hub retries an unreachable server for 23 seconds, so one quick question comes first.
    Raises BackendError, with `advice` on what else to do, where the file cannot be had.
    """
    import huggingface_hub
    from huggingface_hub import constants

    cached = huggingface_hub.try_to_load_from_cache(repo, filename)
    if isinstance(cached, str):
        return Path(cached)
    missing = f"{repo}/{filename} is not in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        raise BackendError(f"{missing}, and HF_HUB_OFFLINE forbids to download it. {advice}")
    own_limit = os.environ.get("HF_HUB_ETAG_TIMEOUT")
    limit = constants.HF_HUB_ETAG_TIMEOUT if own_limit else PROBE_SECONDS
    url = huggingface_hub.hf_hub_url(repo, filename)
    try:
        _within(limit, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=limit))
        path = Path(huggingface_hub.hf_hub_download(repo, filename))
    except Exception as error:
        raise BackendError(
            f"{missing}, and {constants.ENDPOINT} does not give it: {_first_line(error)}. {advice}"
        ) from error
    _verify_blob(path)
    return path


def face_pack(model: str) -> Path:
    """The directory with the ONNX files of an insightface pack, given by name or directory.

    A pack's name is looked up in ~/.insightface/models, where insightface itself keeps packs, and
    downloaded into it from insightface's own release page where it is missing. insightface's own
    download has no timeout and takes a half-unpacked directory for a pack.
    Raises BackendError where there is no pack and none is to be had.
    """
    given = Path(model).expanduser()
    if given.is_dir():
        return _with_onnx_files(given)
    if not re.fullmatch(r"\w[\w.-]*", model):
        raise BackendError(
            f"no directory {model}: give --face-model the directory that holds a pack's .onnx "
            "files, or the name of a pack, such as buffalo_l"
        )
    models = Path("~/.insightface/models").expanduser()
    if not (models / model).is_dir():
        _download_pack(model, models)
    return _with_onnx_files(models / model)


def download(url: str, target: Path, limit: int) -> str:
    """Write what `url` answers to `target`, with a progress bar on stderr; the SHA-256 in hex.

    Raises OSError (timeouts, HTTP errors, a connection that breaks off) or ValueError (more than
    `limit` bytes); `target` is then incomplete.
    """
    digest = hashlib.sha256()
    response = _within(
        TIMEOUT_SECONDS, lambda: urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    )
    with (
        response,
        target.open("wb") as file,
        tqdm(
            total=int(response.headers.get("Content-Length") or 0) or None,
            desc=target.name,
            unit="B",
            unit_scale=True,
        ) as bar,
    ):
        while piece := response.read(1 << 20):
            if bar.n + len(piece) > limit:
                raise ValueError(f"it is larger than {limit >> 20} MiB")
            file.write(piece)
            digest.update(piece)
            bar.update(len(piece))
        if bar.total is not None and bar.n != bar.total:
            raise OSError(f"the connection broke off after {bar.n} of {bar.total} bytes")
    return digest.hexdigest()


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
    from insightface.utils.storage import model_zoo_download_url

    url = model_zoo_download_url(f"{name}.zip")
    _log.warning(
        "downloading %s (insightface's model packs are for non-commercial research only)", url
    )
    try:
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", suffix=".part", dir=models) as scratch:
            archive, folder = Path(scratch, f"{name}.zip"), Path(scratch, name)
            download(url, archive, MAX_ARCHIVE_BYTES)
            unpack(archive, folder, MAX_ARCHIVE_BYTES)
            if not any(folder.rglob("*.onnx")):
                raise ValueError("there is no .onnx file in it")
            folder.rename(models / name)
    except (OSError, ValueError, http.client.HTTPException, zipfile.BadZipFile) as error:
        reason = _first_line(error)
        if isinstance(error, urllib.error.HTTPError) and error.code == 404:
            reason = "it has no such pack; there are buffalo_l, _m, _s, _sc and antelopev2"
        raise BackendError(
            f"the face detector's pack {name} is not in {models}, and could not be downloaded from "
            f"{url}: {reason}. Download that file elsewhere and unpack it into {models / name}, or "
            "give the directory of an unpacked pack with --face-model DIR, or use the detector "
            "that needs no download with --preset embedded"
        ) from error


def _with_onnx_files(folder: Path) -> Path:
    """`folder`, or the one directory in it that has the ONNX files, as in antelopev2's archive."""
    if any(folder.glob("*.onnx")):
        return folder
    nested = sorted({path.parent for path in folder.glob("*/*.onnx")})
    if len(nested) == 1:
        return nested[0]
    raise BackendError(
        f"{folder} is no insightface pack: there is no .onnx file in it. If an earlier download "
        "broke off, delete the directory and run again"
    )


def _verify_blob(path: Path) -> None:
    """Delete a freshly downloaded file of the hub's cache, and raise, if its hash is not right."""
    expected = sha256(path)
    blob = path.resolve()
    info = blob.stat()
    if _read_sha256(blob, info.st_size, info.st_mtime_ns) != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise BackendError(f"{path.name} arrived damaged and was deleted: run again")


@lru_cache
def _read_sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001, they are the key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_sha256(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", name) is not None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, or TimeoutError: name look-ups know no timeout of their own."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from error


def _first_line(error: Exception) -> str:
    if type(error) is urllib.error.URLError:
        return str(error.reason)
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
