"""Repositories of earlier versions, ours and restic's, are read for ever."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from golden import FOLDER, PASSPHRASE, SOURCE, describe
from support import need, run

from diskprep.events import silent
from diskprep.repository.repository import open_repository
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore
from diskprep.vault.check import check
from diskprep.vault.restore import restore

NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def test_no_golden_repository_is_lost() -> None:
    assert {"diskprep-0.1", "restic-0.14", "restic-0.18"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recovery_point_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    repository = open_repository(DirectoryStore(FOLDER / name / "repository"), Secret(PASSPHRASE))
    expected = json.loads((FOLDER / name / "expected.json").read_text())
    points = repository.snapshots()
    assert len(points) == len(expected) == 2
    for number, (point, entries) in enumerate(zip(points, expected, strict=True)):
        target = tmp_path / str(number)
        result = restore(repository, point, target, emit=silent, verify=True)
        found = describe(target / SOURCE.relative_to("/"))
        if os.geteuid() != 0:
            for entry in (*found.values(), *entries.values()):
                del entry["owner"]
        assert found == entries
        assert result.verified == result.files > 10


@pytest.mark.parametrize("name", NAMES)
def test_a_check_finds_nothing_wrong(name: str) -> None:
    repository = open_repository(DirectoryStore(FOLDER / name / "repository"), Secret(PASSPHRASE))
    found = check(repository, read_data=True)
    assert found.problems == ()
    assert found.read_packs == found.packs > 1


@pytest.mark.parametrize("name", NAMES)
def test_todays_restic_reads_them_too(name: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / name / "repository", tmp_path / "repository")  # it leaves locks
    password = tmp_path / "password"
    password.write_text(PASSPHRASE)
    options = ("--no-cache", "-r", tmp_path / "repository", "--password-file", password)
    assert "no errors were found" in run(need("restic"), *options, "check", "--read-data")
