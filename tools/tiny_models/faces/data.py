"""Painted portraits to train on, and which of them are never trained on."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from lora_prep.types import Image
from sample_data.portraits import draw_portrait

FIRST_TRAINING_SEED = 10_000_000
"""Portraits with smaller seeds are held out: no model here was trained on one."""

FIRST_TRAINING_IDENTITY = 500_000
"""People with smaller numbers are held out likewise."""

Floats: TypeAlias = NDArray[np.float32]
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and its faces, in pixels."""

    image: Image
    boxes: Floats
    """(faces, 4): x0, y0, x1, y1, the largest face first."""
    landmarks: Floats
    """(faces, 5, 2): x, y in insightface's order."""


def draw_picture(seed: int, size: tuple[int, int], **how: Any) -> Picture:
    """A painted portrait without its masks; the arguments are `draw_portrait`'s."""
    portrait = draw_portrait(seed, size=size, **how)
    faces = [person.face for person in portrait.people]
    return Picture(
        portrait.image,
        np.array([face.box for face in faces], np.float32),
        np.array([face.landmarks for face in faces], np.float32),
    )


def in_processes(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, what: str
) -> Iterator[_Result]:
    """The function's results in the order of the jobs, with progress printed."""
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        for done, result in enumerate(pool.map(function, jobs, chunksize=16), start=1):
            yield result
            if done % 500 == 0 or done == len(jobs):
                print(f"{what} {done}/{len(jobs)}  {time.monotonic() - start:.0f} s", flush=True)
