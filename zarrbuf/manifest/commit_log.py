"""The commit log of a buffer on a storage: create, open, refresh, commit.

Owns the one exclusive creation that makes a change visible, and what is done when
its answer is lost. What a commit says and adds up to is for `actions` and `snapshot`;
columnar snapshots of the log are written by `log_checkpoints`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import time
import uuid as uuid_module
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, Final

from zarrbuf.common.arguments import check_whole_number
from zarrbuf.errors import (
    CommitUnknownError,
    ConflictError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    StorageRefusedError,
    VacuumedError,
    ZarrbufError,
)
from zarrbuf.manifest.actions import (
    MAX_COMMIT_BYTES,
    Action,
    Commit,
    encode_commit,
    parse_commit,
    sha256_hex,
)
from zarrbuf.manifest.identity import (
    create_root,
    encode_root,
    parse_root,
    read_root,
)
from zarrbuf.manifest.layout import (
    COMMIT_NAME,
    MANIFEST_DIR,
    ROOT_NAME,
    commit_path,
    trajectory_path,
)
from zarrbuf.manifest.log_checkpoints import (
    read_checkpoint,
    read_segment,
    write_checkpoint,
)
from zarrbuf.manifest.snapshot import Change, Snapshot, apply_commits
from zarrbuf.storage.contract import Outcome, Storage

CHECKPOINT_INTERVAL: Final = 256
"""Whoever makes a commit whose number this divides writes a checkpoint too."""
_MAX_WINDOW: Final = 64

Build = Callable[[Snapshot], Sequence[Action]]


class CommitLog:
    """The log of one buffer. Not safe to share between threads without a lock.

    Attributes:
        storage: where it lies.
        uuid: uuid of the buffer.
        snapshot: what the log said when it was last read.
    """

    def __init__(self, storage: Storage, root: bytes) -> None:
        """Use `open_log`, `create_log` or `open_or_create_log` instead."""
        self.storage = storage
        identity = parse_root(root, where=storage.describe(ROOT_NAME))
        self.uuid: str = identity["uuid"]
        self._is_single = identity["commit"] == "single"
        digest = sha256_hex(root)
        self.snapshot = Snapshot(version=0, tip=digest, root=digest)
        self._named: set[str] = set()  # by vacuums whose commits were taken in
        self._asked: tuple[int, float] | None = None  # what time, and when
        self.writer = f"{socket.gethostname()}:{os.getpid()}"

    def refresh(self, *, until: int | None = None, window: int = 1) -> Snapshot:
        """Take in commits that came since, one request if there are none.

        Args:
            until: the last version to take in.
            window: commits asked for at once at first; grows while there are more.

        Raises:
            FormatError: at a hole, a broken chain or a damaged commit, naming it.
        """
        commits = self.read_commits(until=until, window=window)
        for action in itertools.chain(*(commit.actions for commit in commits)):
            if action["action"] == "vacuum":
                self._named.update(action["paths"])
        if commits:
            self.snapshot = apply_commits(
                self.snapshot, commits, read_segment=self._read_segment
            )
        return self.snapshot

    def _read_segment(self, ref: Any) -> Any:
        return read_segment(self.storage, ref)

    def read_commits(
        self, *, until: int | None = None, window: int = 8
    ) -> list[Commit]:
        """Return the commits that came after what is known, and take none in.

        Args:
            until: the last version wanted.
            window: commits asked for at once at first; grows while there are more.

        Raises:
            FormatError: at a hole, a broken chain or a damaged commit, naming it.
        """
        commits: list[Commit] = []
        version, tip = self.snapshot.version, self.snapshot.tip
        while until is None or version < until:
            stop = version + 1 + window
            numbers = range(
                version + 1, stop if until is None else min(stop, until + 1)
            )
            for number, data in self._read_window(numbers):
                where = self.storage.describe(commit_path(number))
                commit = parse_commit(data, version=number, prev=tip, where=where)
                commits.append(commit)
                version, tip = number, commit.digest
            if version < numbers[-1]:
                break
            window = min(2 * window, _MAX_WINDOW)
        return commits

    def _read_window(self, numbers: range) -> list[tuple[int, bytes]]:
        """Read the commits of a window up to the first one that is absent."""
        names = [commit_path(n) for n in numbers]
        found = self.storage.read_existing(names, max_bytes=MAX_COMMIT_BYTES)
        for position, data in enumerate(found):
            if data is not None:
                continue
            later = [n for n, d in zip(numbers, found, strict=True) if d is not None]
            if any(n > numbers[position] for n in later):
                # Both may have come between two reads: look again before complaining.
                again = self.storage.read_existing(
                    [names[position]], max_bytes=MAX_COMMIT_BYTES
                )
                if again[0] is None:
                    raise FormatError(
                        f"{self.storage.describe(commit_path(numbers[position]))} is "
                        f"missing, though commit {later[-1]} is there"
                    )
            found = found[:position]
            break
        pairs = zip(numbers, found, strict=False)
        return [(number, data) for number, data in pairs if data is not None]

    def commit(
        self, build: Build, *, op: str, deadline_s: float | None = None
    ) -> tuple[Snapshot, int]:
        """Make one commit of the actions that `build` gives for the newest snapshot.

        `build` is called again whenever somebody else was first, so it must number
        new trajectories from `snapshot.next_trajectory_id`, and write segments anew: a
        vacuum may have named those of the try before.

        Args:
            build: snapshot -> actions; no action means no commit.
            op: what is done, for people who read the log.
            deadline_s: seconds after which an unclear outcome is given up; None for
                those after which the storage gives up a request.

        Returns:
            The snapshot with the commit in it, and its version.

        Raises:
            CommitUnknownError: if it stayed unknown whether the commit landed.
            StorageError: if the storage failed and the commit surely did not land.
            InvalidInputError: if the commit would be larger than 16 MiB or break
                another rule of the format; nothing was committed.
            VacuumedError: if it would list what a vacuum may delete at any moment, or
                has deleted since `forget_vacuums`.
        """
        txn = uuid_module.uuid4().hex
        if self._is_single and self.storage.is_remote:
            self._check_single()
        if deadline_s is None:
            deadline_s = self.storage.deadline_s
        deadline = time.monotonic() + deadline_s
        self.refresh()
        tries = 0
        while True:
            actions = tuple(build(self.snapshot))
            if not actions:
                return self.snapshot, self.snapshot.version
            commit = self._next_commit(actions, txn=txn, op=op)
            data, change = self._prepare(commit)
            if self._create(commit, data, deadline):
                return self._landed(change)
            tries += 1
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"{self.storage.url}: other writers were first {tries} times "
                    f"within {deadline_s:g} s; nothing was committed, try again"
                )
            time.sleep(random.uniform(0, min(0.001 * 2**tries, 0.1)))
            self.refresh()

    def _check_single(self) -> None:
        """Refuse a writer that may not know that it has to be the only one."""
        if self.storage.commit_method != "single":
            raise InvalidInputError(
                f"{self.storage.url} was made for one writer, on a store without "
                "exclusive creation; say that you are it by the storage option "
                "commit=single"
            )

    def resolve(self, unknown: CommitUnknownError) -> int | None:
        """Find out what became of a commit.

        Args:
            unknown: the error that `commit` ended in.

        Returns:
            Its version, None if it is not in the log now. A request that was given up
            may still be on its way for as long as the store holds one.

        Raises:
            StorageError: if the storage failed.
        """
        self.refresh()
        for version in range(unknown.version, self.snapshot.version + 1):
            data = self.storage.read(commit_path(version), max_bytes=MAX_COMMIT_BYTES)
            if json.loads(data.partition(b"\n")[0]).get("txn") == unknown.txn:
                return version
        return None

    def _next_commit(self, actions: tuple[Action, ...], *, txn: str, op: str) -> Commit:
        return Commit(
            version=self.snapshot.version + 1,
            txn=txn,
            prev=self.snapshot.tip,
            ts=max(self._now_ms(), self.snapshot.ts + 1),
            writer=self.writer,
            op=op,
            actions=actions,
        )

    @property
    def _doomed(self) -> Set[str]:
        return self._named | self.snapshot.doomed

    def forget_vacuums(self) -> None:
        """Start anew to watch what vacuums name; before an archive is written.

        A commit lists nothing that one has named since, even if it is done.
        """
        self._named.clear()

    def _now_ms(self) -> int:
        """Return the time by the storage's clock, which is asked once.

        That of this machine may be hours off, and other machines write here too.
        """
        if self._asked is None:
            self._asked = self.storage.now_ms(), time.monotonic()
        then_ms, asked_at = self._asked
        return then_ms + int(1000 * (time.monotonic() - asked_at))

    def _prepare(self, commit: Commit) -> tuple[bytes, Change]:
        """Encode a commit and check it: what breaks a rule must never land."""
        name = self.storage.describe(commit_path(commit.version))
        try:
            data = encode_commit(commit)
            found = parse_commit(
                data, version=commit.version, prev=commit.prev, where=name
            )
            change = Change(self.snapshot, [found], read_segment=self._read_segment)
        except (TypeError, ValueError) as exc:
            raise InvalidInputError(f"nothing was committed: {exc}") from exc
        # What is done is gone; what is not done may go at any moment.
        doomed = change.uuids_among(self._doomed)
        if doomed:
            paths = ", ".join(sorted(map(trajectory_path, doomed))[:3])
            raise VacuumedError(
                f"{self.storage.url}: a vacuum has said it deletes {paths} "
                f"({len(doomed)} in all); nothing was committed, and the same call "
                "writes them under other names",
                doomed,
            )
        return data, change

    def _create(self, commit: Commit, data: bytes, deadline: float) -> bool:
        """Create the file of a commit; whether it is ours in the end.

        Whatever the storage answered but "created": read the file back. Only its
        content tells whether an answer was lost.
        """
        name = commit_path(commit.version)
        is_unclear = False
        while True:
            failure: ZarrbufError | None = None
            try:
                outcome = self.storage.create(name, data)
                if outcome is Outcome.CREATED:
                    return True
                is_unclear |= outcome is Outcome.UNKNOWN
            except StorageError as exc:
                failure = exc
            try:
                is_ours = commit.txn == self._read_txn(name, commit)
                if is_ours:
                    self.storage.settle(name)
                return is_ours
            except NotFoundError:
                # After an unclear answer the commit may still be on its way.
                if failure is not None and not is_unclear:
                    raise failure from None
            except StorageRefusedError as exc:
                if isinstance(failure, StorageRefusedError) and not is_unclear:
                    raise failure from exc  # neither may be written nor read
                is_unclear = True
            except StorageError:
                is_unclear = True
            if time.monotonic() > deadline:
                raise CommitUnknownError(
                    f"{self.storage.describe(name)}: it stayed unknown whether commit "
                    f"{commit.version} (txn {commit.txn}) landed; ask `resolve` for it "
                    "before trying again",
                    commit.txn,
                    commit.version,
                )
            time.sleep(random.uniform(0.01, 0.1))

    def _read_txn(self, name: str, ours: Commit) -> str:
        found = parse_commit(
            self.storage.read(name, max_bytes=MAX_COMMIT_BYTES),
            version=ours.version,
            prev=ours.prev,
            where=self.storage.describe(name),
        )
        return found.txn

    def _landed(self, change: Change) -> tuple[Snapshot, int]:
        self.snapshot = change.apply()
        version = self.snapshot.version
        if version % CHECKPOINT_INTERVAL == 0:
            # Best effort: without it the next open reads more commits.
            with suppress(StorageError):
                self.snapshot = write_checkpoint(self.storage, self.snapshot)
        return self.snapshot, version


def open_log(
    storage: Storage, *, version: int | None = None, at_ms: int | None = None
) -> CommitLog:
    """Open the log of an existing buffer, now or as it was.

    Args:
        storage: where it lies.
        version: the last commit to take in; 0 is the empty buffer.
        at_ms: take in commits made up to this time, ms since 1970.

    Raises:
        InvalidInputError: if the version is no whole number.
        NotFoundError: if no buffer is there, or it has no such version.
        FormatError: if a commit is missing, damaged or out of the chain.
        UnsupportedVersionError: if the buffer is of a newer spec.
    """
    if version is not None:
        check_whole_number("version", version)
    try:
        root = read_root(storage)
    except NotFoundError as exc:
        # Of an object store: the bucket may be what is not there.
        why = str(exc) if storage.is_remote else f"{ROOT_NAME} is not there"
        raise NotFoundError(f"{storage.url} holds no zarrbuf buffer ({why})") from exc
    log = CommitLog(storage, root)
    log.snapshot = read_checkpoint(storage, log.snapshot, version=version, at_ms=at_ms)
    if log.snapshot.version:
        _check_tip(storage, log.snapshot)
    if at_ms is not None:
        version = _version_at(log, at_ms)
    log.refresh(until=version, window=8)
    if version is not None and log.snapshot.version != version:
        raise NotFoundError(
            f"{storage.url} has no version {version}; the newest is "
            f"{log.snapshot.version}"
        )
    log.forget_vacuums()
    return log


def _check_tip(storage: Storage, snapshot: Snapshot) -> None:
    """Check that the log has the commit that a checkpoint of it ends in.

    Raises:
        FormatError: if it is not there, or another one: the log was cut.
    """
    name = commit_path(snapshot.version)
    (data,) = storage.read_existing([name], max_bytes=MAX_COMMIT_BYTES)
    if data is None or sha256_hex(data) != snapshot.tip:
        how = "is missing" if data is None else "is another one"
        raise FormatError(
            f"{storage.describe(name)} {how}, though a checkpoint of the log was made "
            "after it; zarrbuf repair goes on from what is there"
        )


def _version_at(log: CommitLog, at_ms: int) -> int:
    commits = log.read_commits()
    earlier = [commit.version for commit in commits if commit.ts <= at_ms]
    return earlier[-1] if earlier else log.snapshot.version


def create_log(storage: Storage, *, build: Build, op: str = "create") -> CommitLog:
    """Create a buffer where there is none.

    Args:
        storage: where it shall lie.
        build: gives the actions of the first commit: config, schemas, rows.
        op: what is done, for people who read the log.

    Raises:
        ConflictError: if a buffer is there already.
    """
    storage.check_create()
    root = encode_root(storage)
    create_root(storage, root)
    log = CommitLog(storage, root)
    log.commit(build, op=op)
    return log


def open_or_create_log(storage: Storage, *, config: Mapping[str, Any]) -> CommitLog:
    """Open the buffer that is there, or create one; of two creators one wins."""
    try:
        return open_log(storage)
    except NotFoundError:
        pass
    try:
        return create_log(storage, build=lambda now: [now.meta_action(config=config)])
    except ConflictError:
        return open_log(storage)


def list_versions(storage: Storage) -> list[int]:
    """Return the numbers of all commits there are, ascending.

    Raises:
        FormatError: if a number between the first and the last is missing.
    """
    matches = [COMMIT_NAME.fullmatch(name) for name in storage.list_names(MANIFEST_DIR)]
    versions = sorted(int(match[1]) for match in matches if match)
    for expected, found in enumerate(versions, 1):
        if expected != found:
            raise FormatError(
                f"{storage.describe(commit_path(expected))} is missing, though commit "
                f"{versions[-1]} is there"
            )
    return versions
