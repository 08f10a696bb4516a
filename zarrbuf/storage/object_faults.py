"""What an error of a request means: absent, taken, refused, or worth another try.

Pure. Errors are known by their names, since the libraries they come from may not be
installed.
"""

from __future__ import annotations

import enum
import errno
import re
from typing import Final


class Fault(enum.Enum):
    """What a request came to, if not to what was asked for."""

    MISSING = "is not there"
    EXISTS = "is there already"
    SHORT = "ends before the range does"
    REFUSED = "will not be had by asking again"
    FAILED = "may pass"


class RequestError(Exception):
    """A request that failed for good: why, and the error behind it."""

    def __init__(self, fault: Fault, cause: BaseException) -> None:
        """Keep both."""
        super().__init__(fault, cause)
        self.fault = fault
        self.cause = cause


class ShortAnswerError(Exception):
    """Fewer bytes came than were asked for."""


_REFUSED: Final = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "NoRegionError",
    "ParamValidationError",
    "PermissionDeniedError",
    "DefaultCredentialsError",
    "RefreshError",
    "UnauthenticatedError",
    "InvalidPathError",
    "UnknownConfigurationKeyError",
    "NotSupportedError",
    "NotImplementedError",
    "TypeError",
    "ValueError",
    "ImportError",
    "RuntimeError",
}
"""Names of errors, since the libraries that they come from may not be there."""
_STATUS: Final = re.compile(r"status code: (\d{3})\b")
_MAY_PASS: Final = (408, 409, 425, 429)


def fault_of(exc: BaseException) -> Fault:
    """Say what became of a request that ended in an error."""
    names = {kind.__name__ for kind in type(exc).__mro__}
    status = _status_of(exc)
    # Only of answers that say no more than a sentence: others name paths.
    is_sentence = isinstance(exc, OSError) and exc.errno == errno.EINVAL
    text = str(exc).lower().replace("-", "") if is_sentence else ""
    if status == 409:  # two conditions met on their way: neither may hold
        return Fault.FAILED
    if isinstance(exc, FileExistsError) or names & {"AlreadyExistsError"}:
        return Fault.EXISTS
    if "precondition" in text or status == 412:  # the body that says which is missing
        return Fault.EXISTS
    if isinstance(exc, FileNotFoundError) or status == 404:
        return Fault.MISSING
    is_short = isinstance(exc, ShortAnswerError) or status == 416
    if is_short or "not satisfiable" in text:
        return Fault.SHORT
    # Text that gcsfs puts before the path, and no other error of its.
    is_forbidden = isinstance(exc, PermissionError) or str(exc)[:11] == "Forbidden: "
    if is_forbidden or names & _REFUSED or is_sentence:
        return Fault.REFUSED
    if status is not None and 400 <= status < 500 and status not in _MAY_PASS:
        return Fault.REFUSED
    return Fault.FAILED


def _status_of(exc: BaseException) -> int | None:
    """Return the HTTP status that an error of aiohttp, gcsfs or obstore came with."""
    status = getattr(exc, "status", getattr(exc, "code", None))
    if isinstance(status, int):
        return status
    match = _STATUS.search(str(exc))
    return int(match[1]) if match else None
