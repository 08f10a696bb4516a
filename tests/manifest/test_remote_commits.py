"""Many writers of one log on S3, through a proxy that loses and forges answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from support.s3 import S3

from zarrbuf.archive.spec import FieldSpec
from zarrbuf.manifest.commit_log import list_versions, open_log, open_or_create_log
from zarrbuf.manifest.snapshot import schema_id

FIELDS = {"rewards": FieldSpec("float32", (1,), "step")}
WRITER = """
import json, sys
from support.trajectories import make_row
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.errors import ZarrbufError
from zarrbuf.storage.resolve import open_storage
url, options, schema, count = json.loads(sys.argv[1])
log = open_log(open_storage(url, options))
for _ in range(count):
    row = make_row(0, schema=schema)
    def build(now):
        if row.uuid in now.table.listed.uuids():
            return []
        return [{**row.to_action(), "trajectory_id": now.next_trajectory_id}]
    while True:  # as a writer's queue does it
        try:
            log.commit(build, op="add")
            break
        except ZarrbufError as error:
            print("error", type(error).__name__, flush=True)
    print("done", row.uuid, flush=True)
"""
FAULTS: tuple[dict[str, Any], ...] = (
    {"method": "PUT", "part": "manifest/", "fault": "lost", "share": 0.05},
    {"method": "PUT", "part": "manifest/", "fault": "reset", "share": 0.03},
    {"method": "PUT", "part": "manifest/", "fault": "503", "share": 0.05},
    {"method": "PUT", "part": "manifest/", "fault": "500", "share": 0.03},
    {"method": "PUT", "part": "manifest/", "fault": "409", "share": 0.05},
    {"method": "PUT", "part": "manifest/", "fault": "slow:0.2", "share": 0.02},
    {"method": "GET", "part": "manifest/", "fault": "503", "share": 0.03},
    {"method": "GET", "part": "manifest/", "fault": "reset", "share": 0.02},
    {"method": "GET", "part": "manifest/", "fault": "lost", "share": 0.02},
    {"method": "GET", "part": "manifest/", "fault": "cut", "share": 0.02},
)


def run_writers(s3: S3, clients: list[str], count: int) -> None:
    storage = s3.storage()
    log = open_or_create_log(storage, config={"seed": 1})
    schema = schema_id(FIELDS)
    log.commit(lambda now: [now.meta_action(schemas={schema: FIELDS})], op="meta")
    s3.plan(*FAULTS)
    writers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WRITER,
                json.dumps([s3.url(), s3.options(client), schema, count]),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        for client in clients
    ]
    lines = [line for one in writers for line in one.communicate()[0].splitlines()]
    assert [one.returncode for one in writers] == [0] * len(clients)
    faults = Counter(entry["fault"] for entry in s3.log())
    assert sum(faults.values()) > faults[None]  # some were really met
    s3.plan()
    done = [line.split()[1] for line in lines if line.startswith("done")]
    snapshot = open_log(s3.storage()).snapshot
    listed = snapshot.table.listed
    assert Counter(listed.uuids()) == Counter(done)
    assert len(done) == len(clients) * count
    assert listed.trajectory_ids.tolist() == list(range(len(done)))
    assert list_versions(storage) == list(range(1, 3 + len(done)))


def test_two_writers_lose_nothing_and_list_nothing_twice(s3: S3) -> None:
    run_writers(s3, ["s3fs", "obstore"], 12)


@pytest.mark.long
def test_four_writers_lose_nothing_and_list_nothing_twice(s3: S3) -> None:
    run_writers(s3, ["s3fs", "s3fs", "obstore", "obstore"], 250)
