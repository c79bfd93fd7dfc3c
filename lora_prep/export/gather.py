"""Which images, masks and captions are exported, under which names, and what is left out."""

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from lora_prep import captions, decisions
from lora_prep.captions import Fault
from lora_prep.dataset import STATE_FOLDER, Dataset, Sample, image_names
from lora_prep.errors import UsageError
from lora_prep.export.names import export_stems
from lora_prep.export.plan import Plan
from lora_prep.journal import Journal
from lora_prep.pairs import NEGATIVE, Pairs, check
from lora_prep.types import Severity


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to export."""

    key: str
    """Its name for the user."""
    image: Path
    mask: Path | None
    """None: it is exported without one."""
    caption: str
    stem: str
    """In the export."""
    folder: str = ""
    """In the export; empty: where this trainer's images lie."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that is not exported."""

    key: str
    reason: str
    wanted: bool = False
    """The user rejected it; otherwise something is wrong with it."""


@dataclass
class Gathered:
    """What there is to export."""

    pictures: list[Picture] = field(default_factory=list)
    classes: list[Picture] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    """Images whose caption comes from the template."""
    pair_of: dict[str, str] = field(default_factory=dict)
    """The name that both halves of an image pair share, by the key of each."""

    def leave_out_halves(self) -> list[Picture]:
        """Leave out the pictures whose other half is left out; returns them."""
        lost = {self.pair_of.get(item.key, ""): item for item in reversed(self.left_out)}
        lost.pop("", None)
        halves = [p for p in self.pictures if self.pair_of.get(p.key, "") in lost]
        gone = {picture.key for picture in halves}
        self.pictures = [p for p in self.pictures if p.key not in gone]
        for key in (picture.key for picture in halves):
            other = lost[self.pair_of[key]]
            reason = f"its other half, {other.key}, is left out"
            self.left_out.append(LeftOut(key, reason, other.wanted))
        return halves


def gather(plan: Plan) -> Gathered:
    """List the images. Raises UsageError where captions are missing and cannot be made."""
    found = Gathered()
    candidates = [(plan.dataset, s) for s in plan.dataset]
    if plan.augmented:
        candidates += [(plan.augmented, s) for s in plan.augmented]
    windows = plan.places.style == "windows"
    stems = export_stems([s.name for _, s in candidates], windows=windows)
    rejected = _Rejected.of(plan)
    faults = _pair_faults(plan, rejected)
    if plan.negative:
        candidates += [(plan.negative, s) for s in plan.negative]
        stems += export_stems([s.name for s in plan.negative], windows=windows)
    uncaptioned = []
    for (dataset, sample), stem in zip(candidates, stems, strict=True):
        label = _label(plan, dataset, sample)
        reason = _obstacle(plan, dataset, sample, rejected)
        if plan.negative:
            found.pair_of[label] = _stem(sample.name)
            if reason is None and _stem(sample.name) in faults:
                reason = LeftOut(label, faults[_stem(sample.name)])
        if reason is not None:
            found.left_out.append(reason)
            continue
        text = captions.read(sample)
        if text in (Fault.MISSING, Fault.EMPTY):
            filled = _fill(plan, sample)
            if filled is None:
                uncaptioned.append(label)
                continue
            found.filled.append(label)
            text = filled
        if isinstance(text, Fault):
            found.left_out.append(LeftOut(label, f"its caption is {text}: write it again"))
            continue
        mask = sample.mask if plan.uses_masks else None
        folder = NEGATIVE if dataset is plan.negative else ""
        found.pictures.append(Picture(label, sample.image, mask, one_line(text), stem, folder))
    found.leave_out_halves()
    lost = {found.pair_of.get(item.key) for item in found.left_out}
    uncaptioned = [u for u in uncaptioned if u not in found.pair_of or found.pair_of[u] not in lost]
    if uncaptioned:
        shown = ", ".join(uncaptioned[:3]) + (", ..." if len(uncaptioned) > 3 else "")
        raise UsageError(
            f"{len(uncaptioned)} images have no caption ({shown}), and trainers drop them or train "
            "them on nothing: give --trigger or --caption, or write them (`lora-prep captions`)"
        )
    if plan.priors is not None:
        found.classes = list(_class_images(plan, plan.priors))
    return found


def one_line(caption: str) -> str:
    """kohya reads a caption's first line only, SimpleTuner takes lines for alternatives."""
    return re.sub(r"\s*[\r\n]+\s*", " ", caption).strip()


def _label(plan: Plan, dataset: Dataset, sample: Sample) -> str:
    """An image's name for the user; variants lie in a folder of their own."""
    if dataset is plan.negative:
        return f"{dataset.images.name}/{sample.name}"
    return sample.name if dataset is plan.dataset else f"augmented/{sample.name}"


@dataclass(frozen=True, slots=True)
class _Rejected:
    """What was rejected in the review, on both sides of pairs."""

    keys: frozenset[str]
    by_stem: Mapping[str, str]
    """A key for each stem."""

    @classmethod
    def of(cls, plan: Plan) -> "_Rejected":
        by_key = {
            _label(plan, dataset, dataset.sample(name)): _stem(name)
            for dataset in (plan.dataset, plan.negative)
            if dataset
            for name in sorted(decisions.rejected(dataset))
        }
        return cls(frozenset(by_key), {stem: key for key, stem in by_key.items()})


def _pair_faults(plan: Plan, rejected: _Rejected) -> dict[str, str]:
    """What is wrong with the image pairs that were not rejected, by the name of both sides."""
    if plan.negative is None:
        return {}
    root, sides = plan.dataset.images.parent, (plan.dataset.images.name, plan.negative.images.name)
    recursive = plan.dataset.recursive
    pairs = Pairs.at(root, positive=sides[0], negative=sides[1], recursive=recursive)
    kept = {
        side: {stem: names for stem, names in by_stem.items() if stem not in rejected.by_stem}
        for side, by_stem in pairs.names.items()
    }
    return {
        _stem(f.path.partition("/")[2]): f"{f.path}: {f.message}"
        for f in check(replace(pairs, names=kept))
        if f.severity is Severity.ERROR
    }


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))


def _obstacle(plan: Plan, dataset: Dataset, sample: Sample, rejected: _Rejected) -> LeftOut | None:
    """Why an image is left out, as far as file names tell."""
    key = _label(plan, dataset, sample)
    if key in rejected.keys:
        return LeftOut(key, "rejected in the review", wanted=True)
    if plan.negative and (half := rejected.by_stem.get(_stem(sample.name))):
        return LeftOut(key, f"of its pair, {half} was rejected in the review", wanted=True)
    if dataset is plan.augmented:
        origin = _stem(re.sub(r"-a\d{3,}$", "", sample.stem))
        if source := rejected.by_stem.get(origin):
            return LeftOut(key, f"a variant of {source}, which was rejected", wanted=True)
    if others := dataset.sharers(sample):
        return LeftOut(key, f"{', '.join(others)} would share its mask: rename all but one of them")
    if plan.uses_masks and not sample.mask.is_file():
        return LeftOut(
            key,
            f"it has no mask {sample.mask.name}, and would be trained whole: make it (`lora-prep "
            "masks`), or export everything without masks (--no-masks)",
        )
    return None


def _fill(plan: Plan, sample: Sample) -> str | None:
    """A caption from the template; from the trigger alone where there is none."""
    template = plan.caption or ("{trigger}" if plan.trigger else "")
    return captions.render(template, sample, plan.trigger) if template else None


def _class_images(plan: Plan, folder: Path) -> Iterator[Picture]:
    names = sorted(image_names(folder))
    if not names:
        raise UsageError(
            f"there is no class image in {folder}: draw some (`lora-prep priors`), or give "
            "--no-priors"
        )
    prompts = {} if plan.class_name else _prompts(plan, folder)
    stems = export_stems(names, windows=plan.places.style == "windows")
    for name, stem in zip(names, stems, strict=True):
        caption = plan.class_name or prompts.get(os.path.realpath(folder / name), "")
        if not caption:
            raise UsageError(
                f"what is in {folder} is not known ({name} was not drawn by lora-prep): say with "
                '--class what the class images show ("a photo of a woman")'
            )
        yield Picture(f"{folder.name}/{name}", folder / name, None, one_line(caption), stem)


def _prompts(plan: Plan, folder: Path) -> dict[str, str]:
    """The prompts that lora-prep's own class images were drawn with, by path."""
    found: dict[str, str] = {}
    for root in {plan.dataset.root, plan.dataset.images.parent, folder.parent}:
        for path in sorted((root / STATE_FOLDER).glob("priors*.jsonl")):
            with Journal(path, read_only=True) as journal:
                for entry in journal:
                    prompt = (entry.info or {}).get("prompt")
                    for output in entry.outputs if prompt else ():
                        found[os.path.realpath(root / output)] = str(prompt)
    return found
