"""No message and no traceback shows a credential, wherever it came from."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from zarrbuf.errors import NotFoundError, StorageError, StorageRefusedError
from zarrbuf.storage.object_store import ObjectStorage
from zarrbuf.storage.redaction import redacted, secrets_of
from zarrbuf.storage.requests import Fault, RequestError
from zarrbuf.storage.resolve import open_storage

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "FwoGZXIvYXdzEBYaDHqa0AP1/EXAMPLE=="
ECHO = (
    "403 Forbidden: the request was PUT /bucket/x?X-Amz-Signature=fe5f80f77d5fa3be"
    "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20261129&token-of-query=1\n"
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20261129/us, "
    "SignedHeaders=host, Signature=fe5f80f77d5fa3be\n"
    f"x-amz-security-token: {TOKEN}\nx-secret: {SECRET}\n"
    'authorization: "Bearer ya29.a0AfH6SMBx"\n'
)
HIDDEN = (SECRET, TOKEN, "fe5f80f77d5fa3be", "AKIAIOSFODNN7EXAMPLE", "ya29.a0AfH6SMBx")


@pytest.mark.parametrize("source", ["environment", "options"])
def test_an_echoed_request_shows_no_secret(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"key": "AKIAIOSFODNN7EXAMPLE", "secret": SECRET, "token": TOKEN}
    given: dict[str, Any] = {}
    if source == "options":
        given = options
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    text = redacted(ECHO, secrets_of(given))
    for one in HIDDEN:
        assert one not in text
    assert text.startswith("403 Forbidden: the request was PUT /bucket/x?")
    assert "SignedHeaders=host" in text


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.FAILED, Fault.MISSING])
def test_neither_the_message_nor_a_traceback_shows_one(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    storage = open_storage("s3://bucket/x", {"key": "AKIAIOSFODNN7", "secret": SECRET})
    assert isinstance(storage, ObjectStorage)

    def fail(*_: Any, **__: Any) -> list[Any]:
        try:
            raise PermissionError(ECHO)
        except PermissionError as exc:
            return [RequestError(fault, exc)]

    monkeypatch.setattr(storage, "_run", fail)
    calls = [lambda: storage.read("a"), lambda: storage.delete("a")]
    for call in calls if fault is not Fault.MISSING else calls[:1]:
        with pytest.raises((StorageError, NotFoundError)) as caught:
            call()
        if fault is Fault.REFUSED:
            assert isinstance(caught.value, StorageRefusedError)
        shown = "".join(traceback.format_exception(caught.value))
        assert "403 Forbidden" in shown
        for one in HIDDEN:
            assert one not in str(caught.value)
            assert one not in shown


def test_paths_and_short_words_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    monkeypatch.setenv("SOME_TOKEN", "is")
    said = "cannot read /home/me/key.json: it is not there"
    assert redacted(said, ["not"]) == said
