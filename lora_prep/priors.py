"""Class images: their prompts, seeds and names, and what makes one unfit. Pure functions.

Names are those of diffusers' DreamBooth scripts: `{index}-{SHA-1 of the pixels}.png`. These scripts
take every entry of the folder for a class image, so nothing else may lie in it.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_prep.errors import UsageError
from lora_prep.types import Image

PLACEHOLDER = "{class}"

MANY_INSTANCES = 50

_name = re.compile(r"(\d+)-([0-9a-f]{40})\.\w+").fullmatch


def prompts_from(text: str, class_name: str, source: str) -> tuple[str, ...]:
    """The prompts of a file: one a line with `{class}` in it; empty lines and `#` are passed over.

    Raises UsageError for a line without `{class}`, and where there is none at all.
    """
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        template = line.strip()
        if not template or template.startswith("#"):
            continue
        if PLACEHOLDER not in template:
            raise UsageError(
                f"{source}, line {number}: {template!r} has no {PLACEHOLDER}, which stands for "
                "--class: its images would be of something else"
            )
        prompts.append(template.replace(PLACEHOLDER, class_name))
    if not prompts:
        raise UsageError(f"{source} has no prompt: write one a line, with {PLACEHOLDER} in it")
    return tuple(prompts)


def seed_of(seed: int, index: int, attempt: int = 0) -> int:
    """The seed of an image's noise, 0 to 2⁶³ − 1, from the run's seed and the image's index."""
    digest = hashlib.sha256(f"{seed}:{index}:{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def pixel_hash(image: Image) -> str:
    """SHA-1 of the pixels, row by row in RGB: what diffusers' scripts put into names."""
    return hashlib.sha1(image.tobytes(), usedforsecurity=False).hexdigest()


def file_name(index: int, digest: str, suffix: str) -> str:
    """`17-2fd4e1….png`."""
    return f"{index}-{digest}{suffix}"


def parse_name(name: str) -> tuple[int, str] | None:
    """Index and hash in a name; None where it is no such name."""
    match = _name(name)
    return (int(match[1]), match[2]) if match else None


def flaw(image: Image) -> str:
    """Why an image shows nothing (black, or of one colour); empty where it shows something."""
    low, high = int(image.min()), int(image.max())
    if high - low > 8:
        return ""
    return "it is black" if high <= 8 else "it is of one colour"


@dataclass
class Seen:
    """The pictures so far, to tell repetitions: only one of a lower index counts.

    So an image is judged alike whether the others are drawn before it or were there already.
    """

    indices: dict[str, int] = field(default_factory=dict)
    """The lowest index of each pixel hash."""

    @classmethod
    def of(cls, names: Sequence[str]) -> "Seen":
        """Those that the names of files tell."""
        seen = cls()
        for index, digest in filter(None, map(parse_name, names)):
            seen.add(index, digest)
        return seen

    def repeated(self, index: int, digest: str) -> int | None:
        """The lower index under which the same picture is there already."""
        first = self.indices.get(digest)
        return first if first is not None and first < index else None

    def add(self, index: int, digest: str) -> None:
        """Remember a picture."""
        self.indices[digest] = min(index, self.indices.get(digest, index))


def advice(instances: int) -> str:
    """What the recipe says of class images for so many instance images; empty for few."""
    if instances < MANY_INSTANCES:
        return ""
    return (
        f"note: there are {instances} images of the subject. A rule of thumb, not a measured fact, "
        f"says that from {MANY_INSTANCES} on class images rarely pay; less so for faces, where "
        "they were found to help. The alternative without class images is output preservation "
        "(DOP; ai-toolkit: diff_output_preservation), for one more forward pass a step"
    )


def cost(images: int, steps: int, width: int, height: int, suffix: str) -> str:
    """What drawing will take, in a line."""
    size = f"{width}x{height}"
    disk = images * bytes_of(width, height, suffix)
    return (
        f"{images} images of {size} x {steps} steps = {images * steps:,} denoising steps, "
        f"about {_amount(disk)} of disk"
    )


def bytes_of(width: int, height: int, suffix: str) -> int:
    """A file's size, roughly: 1.6 bytes a pixel as PNG, 0.5 as JPEG of quality 95 in 4:4:4."""
    return round(width * height * (1.6 if suffix == ".png" else 0.5))


def _amount(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
