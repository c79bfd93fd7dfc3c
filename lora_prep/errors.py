"""Every error that lora-prep raises on purpose.

LoraPrepError
├── UsageError         the command line or the configuration file is wrong (exit code 2)
├── DatasetError       the data set as a whole cannot be worked on (exit code 2)
├── BackendError       a model cannot be found, loaded or run (exit code 2)
│   └── OutOfMemory    the device ran out of memory: the runner tries a smaller batch
└── ItemError          one image cannot be worked on: it is reported and the run goes on

Anything else that surfaces is a bug in lora-prep.
"""

from typing import Any


class LoraPrepError(Exception):
    """Base of all errors with a message for the user: what is wrong, where, what to do next."""


class UsageError(LoraPrepError):
    """The command line or the configuration file is wrong."""


class DatasetError(LoraPrepError):
    """The data set as a whole cannot be worked on."""


class BackendError(LoraPrepError):
    """A model cannot be found, loaded or run."""


class OutOfMemory(BackendError):
    """The device ran out of memory; the runner tries again with half the batch."""


class ItemError(LoraPrepError):
    """One item cannot be worked on; the others can.

    `code` is a short stable word for machines, such as `no-face` or `unreadable`. `info` names the
    conditional settings (see `Item`) that made it an error, with their values.
    """

    def __init__(
        self, message: str, *, code: str = "failed", info: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.info = info
