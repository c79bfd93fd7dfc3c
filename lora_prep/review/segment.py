"""Click to segment: the model is loaded at the first click, and looks at each image once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Any

from lora_prep.backends import SegmenterSpec
from lora_prep.backends.interactive import PromptedSegmenter, Prompts, prompted
from lora_prep.types import BoolMask, Image

REMEMBERED = 3
"""Images whose features stay in memory; SAM2's take 17 MB each."""


class Clicking:
    """A segmenter behind a lock, with what it saw of the last images. Safe to call in threads."""

    def __init__(self, spec: SegmenterSpec, embeddings: Path | None = None) -> None:
        """`embeddings` is the folder to keep sam2's image features in; None: in memory alone."""
        self.spec = spec
        self._embeddings = embeddings
        self._model: PromptedSegmenter | None = None
        self._looked: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = Lock()

    def look(self, seen: Hashable, load: Callable[[], Image]) -> str:
        """Have the model look at an image ahead of the first click; returns what it is.

        `seen` names the image, `load` reads it where it has to be. Raises BackendError where the
        model is not to be had.
        """
        with self._lock:
            self._look(seen, load)
            return self._loaded().describe()

    def segment(self, seen: Hashable, load: Callable[[], Image], prompts: Prompts) -> BoolMask:
        """A mask as large as the image. Raises BackendError where the model is not to be had."""
        with self._lock:
            return self._loaded().segment(self._look(seen, load), prompts)

    def _loaded(self) -> PromptedSegmenter:
        if self._model is None:
            self._model = prompted(self.spec, self._embeddings)
        return self._model

    def _look(self, seen: Hashable, load: Callable[[], Image]) -> Any:
        if seen not in self._looked:
            self._looked[seen] = self._loaded().look(load())
            while len(self._looked) > REMEMBERED:
                self._looked.popitem(last=False)
        self._looked.move_to_end(seen)
        return self._looked[seen]
