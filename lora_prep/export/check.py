"""Read an export back as the trainer would: keys, files, masks."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from lora_prep.dataset import is_image
from lora_prep.errors import LoraPrepError
from lora_prep.export import schema
from lora_prep.export.about import About
from lora_prep.export.about import about as read_about
from lora_prep.export.configs import parse
from lora_prep.export.manifest import Manifest, has_hash
from lora_prep.export.recipe import Shape
from lora_prep.pairs import NEGATIVE
from lora_prep.trainers import open_view
from lora_prep.trainers.view import View


@dataclass
class Checked:
    """What reading back found."""

    trainer: str
    images: int = 0
    masked: int = 0
    """Images whose mask the trainer uses, where it belongs."""
    problems: list[str] = field(default_factory=list)


def check(out: Path) -> Checked:
    """Read back the export in a folder.

    Configurations by the parsers of their formats, keys against the trainer's schema, every file by
    its hash, every path in a configuration, and each image and mask by the trainer's own look-up.
    Raises DatasetError where there is no export.
    """
    manifest = Manifest.read(out)
    trainer, about = read_about(out, manifest)
    found = Checked(trainer)
    for name in sorted(manifest.pending):
        found.problems.append(f"{name}: the export was interrupted; run it again")
    for name, entry in sorted(manifest.files.items()):
        path = out / name
        if not path.is_file():
            found.problems.append(f"{name} is gone: export again")
        elif name not in about.configs and not has_hash(path, {entry.sha256}):
            found.problems.append(f"{name} is not as it was exported: export again (--force)")
    found.problems += _configs(out, about)
    layout, shape = about.layout(out), about.shape
    _see(found, open_view(trainer, layout), shape, about.images)
    halves = [name for name in manifest.files if name.startswith(f"{NEGATIVE}/")]
    if halves:
        images = tuple(PurePosixPath(name).name for name in halves if is_image(name))
        shape, layout = replace(shape, images=NEGATIVE), replace(layout, images=out / NEGATIVE)
        _see(found, open_view(trainer, layout), shape, images)
        found.problems += _unpaired(about.images, images)
    return found


def view_of(out: Path, manifest: Manifest | None = None) -> View:
    """The trainer's view of an export, for `lora_prep.trainers`. Raises DatasetError."""
    trainer, about = read_about(out, manifest or Manifest.read(out))
    return open_view(trainer, about.layout(out))


def _configs(out: Path, about: About) -> list[str]:
    found: list[str] = []
    places = about.places
    for name, kind in about.configs.items():
        try:
            value = parse(name, (out / name).read_text("utf-8"))
        except FileNotFoundError:
            continue  # told above
        except (LoraPrepError, OSError, UnicodeDecodeError) as error:
            found.append(f"{name}: {error}")
            continue
        found += [f"{name}: {problem}" for problem in schema.problems(kind, value)]
        for key, path in schema.paths(kind, value):
            local = places.local(path, out)
            if local is None:
                found.append(f"{name}: {key} leads out of the export, to {path}")
            elif not local.exists():
                found.append(f"{name}: {key} leads to {path}, which is not there")
    return found


def _unpaired(high: Iterable[str], low: Iterable[str]) -> list[str]:
    """Images of pairs whose other half is not in the export."""
    stems = [{PurePosixPath(name).stem for name in side} for side in (high, low)]
    return [f"{stem} is half a pair: export again" for stem in sorted(stems[0] ^ stems[1])]


def _see(found: Checked, view: View, shape: Shape, images: Iterable[str]) -> None:
    try:
        names = view.names()
        masked = shape.mask_name != "none"
        found.problems += view.problems()
    except LoraPrepError as error:
        found.problems.append(str(error))
        return
    wanted = set(images)
    found.problems += [
        f"the trainer does not find {shape.images}/{name}" for name in sorted(wanted - {*names})
    ]
    found.problems += [
        f"{shape.images}/{name} is not of this export, and would be trained"
        for name in sorted({*names} - wanted)
    ]
    for name in sorted(wanted & {*names}):
        seen = view.see(name)
        found.images += 1
        if seen.problem:
            found.problems.append(f"{name}: {seen.problem}")
        elif seen.used:
            found.masked += 1
        elif masked and not _opaque(shape, seen.meant):
            found.problems.append(f"{name}: {'; '.join(seen.notes) or 'its mask is not used'}")


def _opaque(shape: Shape, meant: np.ndarray | None) -> bool:
    """A mask that is white all over does nothing, and as alpha it is not even noticed."""
    if meant is None:
        return shape.mask_name == "alpha"
    return bool(meant.min() == 1)
