"""Every error zarrbuf raises, grouped by what the caller does next.

    ZarrbufError(Exception)
    ├── InvalidInputError (ValueError)          fix the call
    │   └── NothingAskedError (AssertionError)
    ├── EmptyBufferError (RuntimeError)         wait for data
    ├── NotFoundError (FileNotFoundError)       nothing at this path
    │   └── TrajectoryNotFoundError (ValueError)
    ├── ConflictError                           someone else was first; reload, retry
    │   ├── CommitUnknownError              may or may not have landed; resolve
    │   └── VacuumedError                   a vacuum may delete it; write it anew
    ├── FormatError (ValueError)                bytes break the format
    │   ├── UnsupportedVersionError
    │   └── UntrustedBaseError
    └── StorageError (OSError)                  the backend failed; may pass on retry
        └── StorageRefusedError                 it refuses: permission, credentials

Messages are plain positional strings, so that every error pickles: what was
wrong and its value; what is allowed; what to do.
"""

from __future__ import annotations


class ZarrbufError(Exception):
    """Base of every error that zarrbuf raises on purpose."""


class InvalidInputError(ZarrbufError, ValueError):
    """The call is wrong: the message names the argument and what is allowed."""


class NothingAskedError(InvalidInputError, AssertionError):
    """A batch of no samples was asked for, which RLinf refuses by an assertion."""


class EmptyBufferError(ZarrbufError, RuntimeError):
    """There is nothing to sample yet; wait for data."""


class NotFoundError(ZarrbufError, FileNotFoundError):
    """Nothing lies at the path that was named."""


class TrajectoryNotFoundError(NotFoundError, ValueError):
    """The buffer is there, but it holds no trajectory of that id."""


class ConflictError(ZarrbufError):
    """Someone else was first; reload and try again."""


class CommitUnknownError(ConflictError):
    """A commit may or may not have landed; `CommitLog.resolve` finds out later.

    Attributes:
        txn: the commit's own name.
        version: the first number that it may have.
    """

    def __init__(self, message: str, txn: str = "", version: int = 0) -> None:
        """Keep what to look for."""
        super().__init__(message)
        self.txn = txn
        self.version = version

    def __reduce__(self) -> tuple[type[CommitUnknownError], tuple[str, str, int]]:
        """Pickle with all that it keeps."""
        return type(self), (str(self), self.txn, self.version)


class VacuumedError(ConflictError):
    """A commit would list what a vacuum has said it deletes; nothing was committed.

    Attributes:
        uuids: of the trajectories.
    """

    def __init__(self, message: str, uuids: frozenset[str] = frozenset()) -> None:
        """Keep which trajectories have to be written again under another name."""
        super().__init__(message)
        self.uuids = uuids

    def __reduce__(self) -> tuple[type[VacuumedError], tuple[str, frozenset[str]]]:
        """Pickle with all that it keeps."""
        return type(self), (str(self), self.uuids)


class FormatError(ZarrbufError, ValueError):
    """Bytes break the format: the message names the file, the member, the rule."""


class UnsupportedVersionError(FormatError):
    """The data was written by a newer format than this program reads."""


class UntrustedBaseError(FormatError):
    """A manifest points outside the places that the caller trusts."""


class StorageError(ZarrbufError, OSError):
    """The storage failed; the same call may pass on retry."""


class StorageRefusedError(StorageError):
    """The storage refuses; the same call fails until permissions are others."""
