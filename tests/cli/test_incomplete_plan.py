"""A plan that leaves packs over makes no import job: the missing disk is named, with the exit code for it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from seeds import SEED
from support import diskprep, diskprep_json

from diskprep.disk import plan as plans
from diskprep.seal import FileKind, Seal, SealedFile, load_seal, save_seal
from diskprep.seed import Staging, save_seed

MIB = 1 << 20


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    """A sealed staging of 20 packs, whose plan has one disk for 4 of them."""
    files = []
    for number in range(20):
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        name = f"data/{digest[:2]}/{digest}"
        files.append(SealedFile(name=name, kind=FileKind.DATA, size_bytes=16 * MIB, sha256=digest))
    seal = Seal(job_name="job-1", repository_id="0" * 64, snapshot="1" * 64, created="now", files=tuple(files))
    staging = Staging(tmp_path / "staging")
    staging.root.mkdir()
    save_seed(staging, replace(SEED, job_name="job-1", repository_id="0" * 64))
    save_seal(staging.seal_file, seal)
    plan = plans.make_plan(seal, [plans.Offer(serial="FIRST", size_bytes=96 * MIB)])
    assert len(plan.disks[0].packs) == 4
    plans.save_plan(staging.plan_file, plan)
    return staging


def test_no_import_job_is_created_before_all_packs_are_on_disks(staging: Staging, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("token")
    token.chmod(0o600)
    endpoint = ("--endpoint", "http://127.0.0.1:9", "--token-file", token)
    _, err = diskprep("job", "create", staging.root, *endpoint, code=24)
    assert "the disk holds all but 0.268 GB of the seed; a further disk of 0." in err
    assert "diskprep disk prepare" in err
    assert not staging.job_file.exists()


def test_the_status_names_the_disk_that_is_missing(staging: Staging) -> None:
    document = diskprep_json("status", staging.root)
    assert document["missing_bytes"] == plans.load_plan(staging.plan_file, load_seal(staging.seal_file)).missing_bytes
    assert document["missing_bytes"] > 16 * 16 * MIB
    assert "disk prepare" in document["next"]
