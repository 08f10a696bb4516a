"""Every error zarrbuf raises, grouped by what the caller does next.

    ZarrbufError(Exception)
    ├── InvalidInputError (ValueError)          fix the call
    ├── EmptyBufferError (RuntimeError)         wait for data
    ├── NotFoundError (FileNotFoundError)       nothing at this path
    │   └── TrajectoryNotFoundError (ValueError)
    ├── ConflictError                           someone else was first; reload, retry
    │   └── CommitUnknownError                  may or may not have landed
    ├── FormatError (ValueError)                bytes break the format
    │   ├── UnsupportedVersionError
    │   └── UntrustedBaseError
    └── StorageError (OSError)                  the backend failed; may pass on retry

Messages are plain positional strings, so that every error pickles: what was
wrong and its value; what is allowed; what to do.
"""

from __future__ import annotations


class ZarrbufError(Exception):
    """Base of every error that zarrbuf raises on purpose."""


class InvalidInputError(ZarrbufError, ValueError):
    """The call is wrong: the message names the argument and what is allowed."""


class EmptyBufferError(ZarrbufError, RuntimeError):
    """There is nothing to sample yet; wait for data."""


class NotFoundError(ZarrbufError, FileNotFoundError):
    """Nothing lies at the path that was named."""


class TrajectoryNotFoundError(NotFoundError, ValueError):
    """The buffer is there, but it holds no trajectory of that id."""


class ConflictError(ZarrbufError):
    """Someone else was first; reload and try again."""


class CommitUnknownError(ConflictError):
    """A commit may or may not have landed; look for its `txn` in the log."""


class FormatError(ZarrbufError, ValueError):
    """Bytes break the format: the message names the file, the member, the rule."""


class UnsupportedVersionError(FormatError):
    """The data was written by a newer format than this program reads."""


class UntrustedBaseError(FormatError):
    """A manifest points outside the places that the caller trusts."""


class StorageError(ZarrbufError, OSError):
    """The storage failed; the same call may pass on retry."""
