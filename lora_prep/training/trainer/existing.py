"""What lies already where a run wants to write: the files of earlier runs, or somebody's own."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from lora_prep.errors import UsageError
from lora_prep.training.trainer import logs, plots, validation
from lora_prep.training.trainer.config import Config


def check(config: Config, *, fresh: bool) -> None:
    """Raise UsageError where the run would replace a file that no run wrote.

    `fresh`: the run begins, so that its log, plot and images begin, too.
    """
    paths = [path for path in targets(config).values() if path.exists() and not _is_ours(path)]
    if fresh and not _is_log(config.save.out / logs.FILE):
        paths.extend(_begun(config))
    if paths:
        raise UsageError(
            f"{paths[0]} would be replaced, and no run of lora-prep train wrote it: move it, "
            "choose another [save] out or name, or give --restart to replace it"
        )


def targets(config: Config) -> dict[str, Path]:
    """The LoRA's file of each naming: the first has the plain name, `sks.kohya.safetensors` not."""
    save = config.save
    styles = list(dict.fromkeys(save.namings))
    middles = ["", *(f".{style}" for style in styles[1:])]
    files = [save.out / f"{save.name}{middle}.safetensors" for middle in middles]
    return dict(zip(styles, files, strict=True))


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return "lora_prep.config" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _is_log(path: Path) -> bool:
    """Empty, or with a line of ours: the rest may be damaged. A run begins with it."""
    try:
        if not path.read_bytes().strip():
            return True
    except OSError:
        return False
    return bool(logs.read(path.parent))


def _begun(config: Config) -> list[Path]:
    """What a run would write over at its first checkpoint and its first images."""
    out = config.save.out
    files = [out / logs.FILE, out / plots.FILE, *sorted((out / validation.FOLDER).glob("step-*"))]
    return [path for path in files if path.exists()]
