"""How many items the model gets at once, where the device's memory does not hold the batch wanted.

What ran out of memory is halved. The cause may be the device, whose memory is too small for such
batches, or one large image that is soon through: so after a few batches that went well the size
doubles again, and where that fails, twice as many have to go well before the next try.
"""

import logging
from dataclasses import dataclass, field

PATIENCE = 4
"""Batches in a row that have to go well before a larger one is tried."""

log = logging.getLogger(__name__)


@dataclass
class BatchSize:
    """The largest batch that the device's memory seems to hold."""

    most: int
    """The largest batch wanted."""
    size: int = field(init=False)
    """What to try next, 1 to `most`."""
    _wait: int = PATIENCE
    _well: int = 0
    """Batches of `size` that went well since it last changed."""
    _grown: bool = False
    """Whether `size` is one that was grown to, and has not yet proved good."""
    _failed: int = 0
    """The batch that ran out of memory last, until one goes well again."""
    _told: bool = False

    def __post_init__(self) -> None:
        self.size = self.most

    def failed(self, count: int) -> None:
        """A batch of several ran out of memory: try its half."""
        if self._grown:
            self._wait *= 2
        self._failed = max(self._failed, count)
        self.size, self._well, self._grown = -(-count // 2), 0, False

    def failed_alone(self) -> None:
        """An item ran out of memory even alone: that says nothing of the others."""
        self.size, self._well, self._failed = self.most, 0, 0

    def went_well(self, count: int) -> None:
        """A batch did fit."""
        if self._failed and not self._told:
            self._told = True
            log.warning(
                "out of memory at a batch of %d: going on with %d, and with more once that goes "
                "well for a while",
                self._failed,
                count,
            )
        self._failed = 0
        if count < self.size:  # the last of a run, or of what was cut up: larger ones may fail
            return
        self._well += 1
        if self._well < self._wait:
            return
        if self._grown:
            self._wait = PATIENCE
        self._grown, self._well = self.size < self.most, 0
        self.size = min(2 * self.size, self.most)
