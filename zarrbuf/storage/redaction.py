"""What no message and no traceback may show: credentials, wherever they came from.

Owns which words are one: the values of options and of the environment, and what stands
where requests carry one. Knows no store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

_NAME: Final = re.compile("key|secret|token|password|credential|auth", re.IGNORECASE)
"""Names of options and of variables whose values no message shows."""
_MIN_SECRET: Final = 6  # what is shorter is none, and stands in many words
_CARRIED: Final = re.compile(
    r"""(?ix)
    ( \b (?: authorization | (?:x-amz-|x-goog-)? (?:security-token|signature|credential)
      | awsaccesskeyid | access_token | session_token | sig ) ["']? \s* [=:] \s* ["']?
      (?: (?:bearer|basic|aws4-hmac-sha256) \s+ )?
    | \b bearer \s+ )
    [^\s"',;&<>]+
    """
)
_HIDDEN: Final = "***"


class RedactedError(Exception):
    """What a client said of a failure, less its secrets: stands for its error."""


def secrets_of(options: Mapping[str, Any]) -> list[str]:
    """Return the values that no message may show, those of inner options too."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += secrets_of(value)
        elif _NAME.search(name) and not isinstance(value, bool):
            found.append(str(value))
    return found


def redacted(text: str, secrets: Sequence[str]) -> str:
    """Return a text without secrets: some that are known, the environment's, others.

    Args:
        text: what a client said, which may echo a request with its headers.
        secrets: values of options.
    """
    words = {
        form
        for one in (*secrets, *_secrets_of_environment())
        if len(one) >= _MIN_SECRET
        for form in (one, quote(one, safe=""))
    }
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, _HIDDEN)
    return _CARRIED.sub(rf"\1{_HIDDEN}", text)


def _secrets_of_environment() -> list[str]:
    # A path to a file of credentials is none, and tells where to look.
    return [
        value
        for name, value in os.environ.items()
        if _NAME.search(name) and not value.startswith(("/", "~"))
    ]
