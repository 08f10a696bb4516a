"""Names of other buffers in a manifest: how they are written, read and trusted.

Pure. A manifest may come from anybody, so what it names is parsed here and held against
where the buffer lies; nothing is opened.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Final, NamedTuple

from zarrbuf.errors import InvalidInputError, UntrustedBaseError

SCHEMES: Final = ("file", "s3", "gs", "memory", "http", "https")
_FOLDERS: Final = ("file", "http", "https")
"""Schemes whose roots trust what lies beside them; others trust their own bucket."""


class Place(NamedTuple):
    """Where a buffer lies.

    Attributes:
        scheme: "file" for local paths.
        authority: bucket or host; empty for local paths.
        path: absolute and normal: no ".", no "..", no "/" at its end.
    """

    scheme: str
    authority: str
    path: str

    @property
    def url(self) -> str:
        """The place as a URL; local ones as a path."""
        if self.scheme == "file":
            return self.path
        return f"{self.scheme}://{self.authority}{self.path}".rstrip("/")

    @property
    def parent(self) -> str:
        """Path of the directory that it lies in."""
        return posixpath.dirname(self.path)

    def is_below(self, other: Place) -> bool:
        """Whether it is another place, or lies below it."""
        inside = self.path == other.path or self.path.startswith(
            other.path.rstrip("/") + "/"
        )
        return self[:2] == other[:2] and inside


def place_of(url: str) -> Place:
    """Return the place of a local path or URL, as the caller wrote it."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Place("file", "", posixpath.normpath(url))
    if scheme == "file":
        return Place("file", "", posixpath.normpath(rest))
    authority, _, path = rest.partition("/")
    return Place(scheme, authority, posixpath.normpath(f"/{path}"))


def base_url(root: str, other: str) -> str:
    """Return what the manifest of one buffer calls another one.

    Args:
        root: URL or absolute path of the buffer whose manifest it is.
        other: of the buffer that is named.

    Returns:
        A relative path where both are reached the same way, else the URL; so buffers
        that are moved together stay together.

    Raises:
        InvalidInputError: if they are in stores of different kinds.
    """
    here, there = place_of(root), place_of(other)
    if here.scheme != there.scheme:
        raise InvalidInputError(
            f"{there.url} lies in another kind of store than {here.url}, which can "
            "not name it; copy the trajectories (mode copy)"
        )
    if here.authority != there.authority:
        return there.url
    return posixpath.relpath(there.path, here.path)


def resolve_base(root: str, name: str, *, where: str) -> Place:
    """Return the place that the manifest of a buffer names.

    Args:
        root: URL or absolute path of the buffer.
        name: what its manifest says, from anybody.
        where: the manifest, for messages.

    Raises:
        UntrustedBaseError: if it is no plain path or URL of the same kind of store, or
            leads out of its bucket.
    """
    here = place_of(root)
    has_control = any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
    if not name or len(name) > 4096 or has_control or "::" in name:
        raise UntrustedBaseError(f"{where}: base {name!r:.200} is no path or URL")
    if "://" in name:
        place = place_of(name)
        hosts = place.authority
        if (
            place.scheme not in SCHEMES
            or any(c in name for c in "@?#%")
            or (place.scheme != "file" and not hosts)
            or ".." in name.split("/")
        ):
            raise UntrustedBaseError(f"{where}: base {name!r:.200} is no plain URL")
    elif name.startswith("/"):
        place = Place("file", "", posixpath.normpath(name))
    else:
        depth = len([part for part in here.path.split("/") if part])
        if name.split("/").count("..") > depth:
            raise UntrustedBaseError(
                f"{where}: base {name!r:.200} leads out of {here.url}"
            )
        path = posixpath.normpath(posixpath.join(here.path, name))
        place = Place(here.scheme, here.authority, path)
    if place.scheme != here.scheme:
        raise UntrustedBaseError(
            f"{where}: base {name!r:.200} is in another kind of store than {here.url}"
        )
    return place


def check_trusted(
    root: str, place: Place, allow_bases: Sequence[str], *, where: str
) -> None:
    """Check that a buffer may name another one.

    Without being told, a buffer trusts itself and what lies beside it: in the same
    directory, or in the same bucket.

    Args:
        root: URL or absolute path of the buffer.
        place: what it names.
        allow_bases: places that are trusted too, with all below them.
        where: the manifest, for the message.

    Raises:
        UntrustedBaseError: if it may not.
    """
    here = place_of(root)
    if place == here or any(place.is_below(place_of(one)) for one in allow_bases):
        return
    is_beside = here.scheme not in _FOLDERS or place.parent == here.parent
    if is_beside and place[:2] == here[:2]:
        return
    raise UntrustedBaseError(
        f"{where}: names trajectories of {place.url}, which does not lie beside "
        f"{here.url}; if it is to be trusted, say so by allow_bases (--allow-base)"
    )
