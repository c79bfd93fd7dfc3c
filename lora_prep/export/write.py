"""Write an export: pictures first, then the configuration that names them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from lora_prep import imageio
from lora_prep.errors import DatasetError, ItemError
from lora_prep.export import module
from lora_prep.export.about import About
from lora_prep.export.files import Folder, fingerprint
from lora_prep.export.gather import Gathered, LeftOut, Picture, gather
from lora_prep.export.kept import Filled, as_kept, as_written
from lora_prep.export.kohya import enlarged_size
from lora_prep.export.pixels import FORMATS, enlarged, plain_image, training_mask, with_alpha
from lora_prep.export.plan import FLOOR_KEYS, Plan
from lora_prep.export.recipe import Recipe, Shape
from lora_prep.export.train_md import NAME as TRAIN_MD
from lora_prep.export.train_md import train_md
from lora_prep.types import Json

REVISION = 1
"""Changes whenever an exported picture would."""


@dataclass
class Report:
    """How an export went. It owns the exit code."""

    trainer: str
    out: Path
    images: int = 0
    classes: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    """Images that were written anew: turned upright, other formats, colour profiles."""
    notes: tuple[str, ...] = ()
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    configs: tuple[str, ...] = ()
    blocks_lost: bool = False
    """A configuration that was edited, and so is kept, lacks the selected blocks."""

    @property
    def exit_code(self) -> int:
        """1 where images were left out that the user did not reject, or the selected blocks."""
        return 1 if self.blocks_lost or any(not item.wanted for item in self.left_out) else 0


def export(
    plan: Plan,
    *,
    dry_run: bool = False,
    force: bool = False,
    observe: Callable[[], object] | None = None,
) -> Report:
    """Bring the export up to date. `observe` is called after each picture.

    Raises UsageError where the plan does not fit the data or others' files are in the way, and
    DatasetError where nothing is left to export or the folder cannot be written.
    """
    gathered = gather(plan)
    shape: Shape = module(plan.trainer).shape(plan)
    if not gathered.pictures:
        raise DatasetError(_nothing(gathered))
    writer = _Writer(plan, shape, Folder(plan.out, plan.trainer, dry_run=dry_run, force=force))
    recipe: Recipe = module(plan.trainer).recipe(plan, gathered)
    files = [name for p in gathered.pictures for name in writer.names(p)]
    files += [name for p in gathered.classes for name in writer.names(p, of_class=True)]
    kept = [
        config.name
        for config in recipe.configs
        if config.yours and not force and writer.folder.is_edited(config.name)
    ]
    configs = [config.name for config in recipe.configs if config.name not in kept]
    writer.folder.begin([*files, *configs, TRAIN_MD])
    report = Report(plan.trainer, plan.out, left_out=gathered.left_out)
    for of_class, pictures in ((False, gathered.pictures), (True, gathered.classes)):
        for picture in list(pictures):
            try:
                if writer.write(picture, of_class=of_class):
                    report.mended.append(picture.key)
            except ItemError as error:
                pictures.remove(picture)
                report.left_out.append(LeftOut(picture.key, str(error)))
            if observe:
                observe()
    for half in gathered.leave_out_halves():
        writer.take_back(half)
    if not gathered.pictures:
        raise DatasetError(_nothing(gathered))
    if plan.priors is not None and not gathered.classes:
        raise DatasetError(f"no class image in {plan.priors} can be read")
    recipe = module(plan.trainer).recipe(plan, gathered)
    for config in recipe.configs:
        if config.name in kept:
            writer.folder.keep(config.name)
        else:
            writer.folder.put(config.name, config.text().encode(), "")
    for config in recipe.configs:
        if config.name in kept:
            filled = as_kept(config, plan.out)
        else:
            filled = as_written(config) if config.yours else Filled()
        report.notes += tuple(filled.notes)
        report.blocks_lost = report.blocks_lost or filled.lost
    recipe = replace(recipe, notes=recipe.notes + report.notes)
    told = not report.blocks_lost and (plan.emission is None or plan.emission.value is not None)
    text = train_md(plan, gathered, recipe, blocks=told)
    writer.folder.put(TRAIN_MD, text.encode(), "")
    writer.folder.finish(_about(plan, shape, recipe, writer).to_json())
    exported = {picture.key for picture in gathered.pictures + gathered.classes}
    report.filled = [key for key in gathered.filled if key in exported]
    report.mended = [key for key in report.mended if key in exported]
    report.images, report.classes = len(gathered.pictures), len(gathered.classes)
    report.notes, report.configs = recipe.notes, tuple(c.name for c in recipe.configs)
    report.changed, report.removed = writer.folder.changed, writer.folder.removed
    folders = [shape.images, shape.masks] + (["class"] if gathered.classes else [])
    folders += [picture.folder for picture in gathered.pictures if picture.folder]
    report.strangers = writer.folder.strangers(folders)
    return report


@dataclass
class _Writer:
    plan: Plan
    shape: Shape
    folder: Folder
    images: list[str] = field(default_factory=list)

    def names(self, picture: Picture, *, of_class: bool = False) -> list[str]:
        """The files that a picture becomes: image, caption, mask, as far as it has them."""
        shape = self.shape
        where = "class" if of_class else picture.folder or shape.images
        found = [f"{where}/{picture.stem}{self._suffix(picture, of_class)}"]
        if shape.class_captions if of_class else shape.captions:
            found.append(f"{where}/{picture.stem}.txt")
        if picture.mask is not None and shape.mask_name != "alpha":
            ending = "-masklabel.png" if shape.mask_name == "label" else ".png"
            found.append(f"{shape.masks}/{picture.stem}{ending}")
        return found

    def write(self, picture: Picture, *, of_class: bool) -> bool:
        """Write a picture's files, where they are not just so. Returns whether it was mended.

        Raises ItemError where it cannot be exported.
        """
        image = _read(picture.image)
        mask = _read(picture.mask) if picture.mask else b""
        names = self.names(picture, of_class=of_class)
        floor = 0.0 if self.plan.trainer in FLOOR_KEYS else self.plan.mask_floor
        settings: list[Json] = [
            REVISION,
            self.plan.trainer,
            floor,
            self.plan.mask_floor > 0,
            self.plan.link,
        ]
        settings += [self.plan.background_prior > 0, picture.image.suffix, asdict(self.shape)]
        if self.shape.mask_name == "alpha":
            settings += [self.plan.resolutions, self.plan.buckets]
        made_from = fingerprint(settings, names, picture.caption, image, mask)
        seen = not of_class and not picture.folder
        if seen:
            self.images.append(names[0])
        if self.folder.is_fresh(names, made_from, picture.image):
            return False
        try:
            files, mended = self._files(picture, names, image, mask, floor, of_class)
        except ItemError:
            if seen:
                self.images.remove(names[0])
            raise
        for name, data in files.items():
            if data is None:
                self.folder.link(name, picture.image, image, self.plan.link, made_from)
            else:
                self.folder.put(name, data, made_from)
        return mended

    def take_back(self, picture: Picture) -> None:
        """Take a picture's files out of the export again."""
        names = self.names(picture)
        self.folder.drop(names)
        if names[0] in self.images:
            self.images.remove(names[0])

    def _files(
        self,
        picture: Picture,
        names: list[str],
        image: bytes,
        mask: bytes,
        floor: float,
        of_class: bool,
    ) -> tuple[dict[str, bytes | None], bool]:
        suffix = picture.image.suffix
        weights = None
        if picture.mask:
            try:
                weights = training_mask(mask, image, floor or (1e-9 if self.plan.mask_floor else 0))
            except ItemError as error:
                raise ItemError(f"{picture.mask.name}: {error}", code=error.code) from error
            white = int(weights.min()) == 255
            if white and self.plan.background_prior and self.plan.trainer == "ai-toolkit":
                raise ItemError(
                    f"{picture.mask.name} is white all over: --background-prior divides by what is "
                    "black, and becomes NaN",
                    code="mask-white",
                )
        files: dict[str, bytes | None] = {}
        if weights is not None and self.shape.mask_name == "alpha":
            pixels = imageio.decode_image(image)
            size = enlarged_size(self.plan, pixels.shape[1], pixels.shape[0])
            if size:
                pixels, weights = enlarged(pixels, size), enlarged(weights, size)
            files[names[0]] = with_alpha(pixels, weights)
            mended = size is not None or imageio.read_header(image).orientation != 1
        else:
            png = self.shape.png_only and not of_class
            files[names[0]], _ = plain_image(image, suffix, png=png)
            mended = files[names[0]] is not None
        for name in names[1:]:
            if name.endswith(".txt"):
                files[name] = picture.caption.encode() + b"\n"
            elif weights is not None:
                files[name] = imageio.encode_mask(weights)
        return files, mended

    def _suffix(self, picture: Picture, of_class: bool) -> str:
        suffix = picture.image.suffix.lower()
        if (self.shape.png_only and not of_class) or suffix not in FORMATS:
            return ".png"
        return suffix


def _about(plan: Plan, shape: Shape, recipe: Recipe, writer: _Writer) -> About:
    return About(
        {config.name: config.schema for config in recipe.configs},
        shape,
        recipe.look,
        plan.resolutions[0],
        plan.buckets,
        tuple(PurePosixPath(name).name for name in writer.images),
        plan.places,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ItemError(f"{path.name} cannot be read ({error.strerror})", code="unreadable") from (
            error
        )


def _nothing(gathered: Gathered) -> str:
    first = gathered.left_out[0] if gathered.left_out else None
    why = f"; {first.key}: {first.reason}" if first else ""
    return f"nothing is left to export: all {len(gathered.left_out)} images were left out{why}"
