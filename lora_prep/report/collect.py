"""Everything the page shows, gathered once: facts an image, and what holds for all of them."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain

from lora_prep import captions, decisions
from lora_prep.attempt import Finished
from lora_prep.captions import Fault
from lora_prep.dataset import Dataset, Sample
from lora_prep.decisions import Decision, Verdict
from lora_prep.errors import DatasetError, UsageError
from lora_prep.executors.local import ahead
from lora_prep.journal import Journal
from lora_prep.masks import Margin
from lora_prep.report.made import Augmented, Priors, augmented, priors, spread
from lora_prep.report.measure import Measured, measure
from lora_prep.report.people import People, read_people
from lora_prep.status import State, Step, steps
from lora_prep.types import Issue, Severity

STATES = {
    State.DONE: "made",
    State.STALE: "stale",
    State.MISSING: "no mask",
    State.BY_HAND: "by hand",
    State.SKIPPED: "skipped",
    State.FAILED: "failed",
    State.ORPHANED: "stale",
}
"""How a mask stands, in the page's words."""

LONGEST_CAPTION = 2000
"""Characters of a caption that are shown."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of issue: what is explained once for all of them."""

    code: str
    title: str
    severity: Severity
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Options:
    """How much is gathered."""

    thumbnail_size: int = 256
    """Longer side of a small picture, in pixels."""
    max_images: int = 2000
    """Pictures in the gallery."""
    erosion: Margin = field(default_factory=lambda: Margin.parse("2%"))
    """What `lora-prep masks` took off, for masks of which the journal does not say."""
    threads: int = 4


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of one image."""

    name: str
    """Relative to the image folder."""
    key: str
    """Relative to the data set's root."""
    bytes: int
    state: str
    """How its mask came about and stands: one of STATES, or accepted or rejected in the review."""
    decided: str
    """The decision of the review; empty without one."""
    caption: str | None
    caption_fault: str
    similarity: float | None
    erosion: str
    """The margin that was taken off the mask's edge; empty where that is not known."""
    erosion_recorded: bool
    """Whether the journal says so; else it is the setting of now."""
    measured: Measured
    issues: Sequence[Issue]
    shown: bool
    """Whether it is in the gallery."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a data set."""

    name: str
    """Of its folder."""
    images: Sequence[ImageFacts]
    kinds: Sequence[tuple[Kind, Sequence[Issue]]]
    """The kinds of issues that were found, the most frequent errors first."""
    people: People
    augmented: Augmented
    priors: Priors
    steps: Sequence[Step]
    missing: Sequence[str]
    """What the report does not know, and what to do about it."""

    @property
    def states(self) -> Counter[str]:
        """Number of images in each state."""
        return Counter(image.state for image in self.images)

    @property
    def severities(self) -> Counter[Severity]:
        """Number of errors and warnings."""
        return Counter(issue.severity for _, issues in self.kinds for issue in issues)


def collect(
    dataset: Dataset,
    *,
    issues: Sequence[Issue],
    kinds: Iterable[Kind],
    options: Options | None = None,
    observe: Callable[[int], object] | None = None,
) -> Facts:
    """Look at every image once, in threads; writes nothing.

    Args:
        issues: what `lora_prep.validate` found.
        kinds: the explanations of their codes.
        observe: is called with 1 for each image that was looked at.

    In memory are about a kilobyte an image, the small pictures of `max_images` of them, and the
    images that are being decoded, one a thread.
    """
    options = options or Options()
    decided, trouble = _decisions(dataset)
    of_image = by_image(dataset, issues)
    people = read_people(dataset)
    found = list(steps(dataset))
    states = _states(dataset, found)
    eroded = dict(_recorded_erosion(dataset))
    shown = _gallery(dataset, of_image, options.max_images)

    def look(sample: Sample) -> ImageFacts:
        key = dataset.key(sample.image)
        state = states.get(key, "by hand" if sample.mask.exists() else "no mask")
        decision = decided.get(sample.name)
        state = reviewed(state, decision)
        recorded = eroded.get(key)
        erosion = (recorded or options.erosion) if state in ("made", "accepted") else None
        text = _caption(sample)
        measured = measure(
            dataset,
            sample,
            people.known.get(sample.name),
            size=options.thumbnail_size if sample.name in shown else None,
            erosion=erosion,
        )
        return ImageFacts(
            name=sample.name,
            key=key,
            bytes=_bytes(sample),
            state=state,
            decided=(decision and decision.verdict) or "",
            caption=text if not isinstance(text, Fault) else None,
            caption_fault=text if isinstance(text, Fault) else "",
            similarity=people.similarities.get(sample.name),
            erosion=str(erosion) if erosion and measured.before is not None else "",
            erosion_recorded=recorded is not None,
            measured=measured,
            issues=of_image.get(sample.name, ()),
            shown=sample.name in shown,
        )

    images = []
    with ThreadPoolExecutor(options.threads) as pool:
        try:
            for image in ahead(pool, look, iter(dataset), 2 * options.threads):
                assert not isinstance(image, Finished)  # only a stage's items are
                images.append(image)
                if observe:
                    observe(1)
            variants = augmented(dataset, pool, options.thumbnail_size)
            class_images = priors(dataset, pool, options.thumbnail_size)
        finally:
            pool.shutdown(cancel_futures=True)
    facts = Facts(
        name=dataset.images.parent.name or dataset.images.name,
        images=images,
        kinds=_kinds(kinds, issues),
        people=people,
        augmented=variants,
        priors=class_images,
        steps=found,
        missing=(),
    )
    return replace(facts, missing=(*trouble, *_missing(facts)))


def reviewed(state: str, decision: Decision | None) -> str:
    """How a mask stands, with what was decided about its image."""
    if decision is None:
        return state
    if decision.verdict is Verdict.REJECTED:
        return "rejected"
    if decision.verdict is Verdict.ACCEPTED and decision.made and not decision.edited:
        return "accepted"  # which keeps it from being made again, as if it were made by hand
    return state


def _decisions(dataset: Dataset) -> tuple[dict[str, Decision], list[str]]:
    """What was decided in the review, or why that is not known."""
    try:
        return decisions.read(dataset), []
    except DatasetError as error:
        return {}, [f"What was decided in the review is not known: {error}."]


def by_image(dataset: Dataset, issues: Sequence[Issue]) -> dict[str, list[Issue]]:
    """The issues of each image, by its name, and those of its mask and caption."""
    owners: dict[str, list[str]] = {}
    for sample in dataset:
        for path in (sample.image, sample.mask, sample.caption):
            owners.setdefault(dataset.key(path), []).append(sample.name)
    found: dict[str, list[Issue]] = {}
    for issue in issues:
        for name in owners.get(os.path.normpath(issue.path).replace(os.sep, "/"), []):
            found.setdefault(name, []).append(issue)
    return found


def _gallery(
    dataset: Dataset, of_image: Mapping[str, Sequence[Issue]], count: int
) -> frozenset[str]:
    """The images to show: those with issues first, of the rest every so many-th."""
    names = [sample.name for sample in dataset]
    troubled = [name for name in names if name in of_image]
    others = [name for name in names if name not in of_image]
    some = spread(troubled, count)
    return frozenset(chain(some, spread(others, count - len(some))))


def _states(dataset: Dataset, found: Sequence[Step]) -> dict[str, str]:
    """How the mask of each image stands, by the image's key."""
    folder = dataset.masks.name
    journal = "masks" if folder == "masks" else f"masks-{folder}"
    return {
        item.key: STATES[item.state]
        for step in found
        if step.name == journal
        for item in step.items
    }


def _recorded_erosion(dataset: Dataset) -> Iterator[tuple[str, Margin]]:
    """The erosion of each mask, where the journal has it."""
    folder = dataset.masks.name
    path = dataset.state / ("masks.jsonl" if folder == "masks" else f"masks-{folder}.jsonl")
    if path.exists():
        with Journal(path, read_only=True) as journal:
            for entry in journal:
                text = (entry.info or {}).get("erode")
                if isinstance(text, str):
                    with suppress(UsageError):
                        yield entry.key, Margin.parse(text)


def _kinds(kinds: Iterable[Kind], issues: Sequence[Issue]) -> list[tuple[Kind, list[Issue]]]:
    grouped: dict[str, list[Issue]] = {}
    for issue in issues:
        grouped.setdefault(issue.code, []).append(issue)
    found = [(kind, grouped[kind.code]) for kind in kinds if kind.code in grouped]
    return sorted(
        found,
        key=lambda pair: (pair[0].severity is not Severity.ERROR, -len(pair[1]), pair[0].code),
    )


def _caption(sample: Sample) -> str | Fault:
    """The caption, the end of a very long one left out; or why there is none."""
    text = captions.read(sample)
    if not isinstance(text, Fault) and len(text) > LONGEST_CAPTION:
        return text[:LONGEST_CAPTION] + " …"
    return text


def _missing(facts: Facts) -> Iterator[str]:
    images = [image.measured for image in facts.images]
    if not images:
        yield "There is no image in the image folder: `lora-prep normalize PHOTOS` makes copies."
        return
    if not any(image.coverage is not None for image in images):
        yield "There are no masks yet: `lora-prep masks` makes them."
    if facts.people.problem:
        yield f"No similarity: {facts.people.problem}."
    unseen = sum(image.faces is None and not image.problem for image in images)
    if unseen:
        which = "any image" if unseen == len(images) else f"{unseen} images"
        yield (
            f"No faces are known of {which}, or the image has changed since: `lora-prep detect` or "
            "`lora-prep embed` finds them. Sharpness is that of the mask, or of the whole image."
        )
    if all(image.caption is None for image in facts.images):
        yield "There are no captions: `lora-prep captions --fill TEMPLATE` writes some."
    if not facts.augmented.variants:
        yield "There are no augmented pairs in the data set (`lora-prep augment`)."
    if not facts.priors.count:
        yield "There are no class images in the data set (`lora-prep priors`)."
    damaged = sum(bool(image.problem) for image in images)
    if damaged:
        yield f"{damaged} images cannot be read: they have no picture here."
    hidden = sum(not image.shown for image in facts.images)
    if hidden:
        yield (
            f"{hidden} images are counted, and not in the gallery: --max-images says how many are. "
            "Those with issues come first, of the others every so many-th."
        )


def _bytes(sample: Sample) -> int:
    try:
        return sample.image.stat().st_size
    except OSError:
        return 0
