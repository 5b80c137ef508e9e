"""restic itself, through rclone, works on a vault container that was made by publishing, importing and ingesting."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import need
from trip import PASSPHRASE, Seeded, below, new_trip, restic

from diskprep.compare import differences, fingerprint
from diskprep.repository.repository import Repository, open_repository
from diskprep.secrets import Secret

Restic = Callable[..., str]


@pytest.fixture(scope="module")
def vaulted(azurite: Any, restic_seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Restic]:
    """The vault in a container, and restic on it."""
    need("rclone")
    folder = tmp_path_factory.mktemp("container")
    container, vault = azurite.fresh_container(), azurite.fresh_container()
    trip = new_trip(restic_seeded, folder, container, vault)
    trip.publish()
    trip.deliver()
    hold = trip.open().hold(trip.seal.job_name)
    trip.ingest()
    hold.release()
    name = f"rclone:az:{vault.location.rpartition('/')[2]}"
    environment = azurite.rclone_environment()

    def on_vault(*arguments: str | Path, ok: bool = True) -> str:
        return restic(name, trip.password_file, *arguments, ok=ok, env=environment)

    return open_repository(vault, Secret(PASSPHRASE)), on_vault


def test_restic_reads_all_data_of_the_vault(vaulted: tuple[Repository, Restic]) -> None:
    assert "no errors were found" in vaulted[1]("check", "--read-data")


def test_restic_restores_the_source_from_the_vault(
    vaulted: tuple[Repository, Restic], restic_seeded: Seeded, tmp_path: Path
) -> None:
    _, on_vault = vaulted
    snapshot = re.findall(r"^([0-9a-f]{8}) ", on_vault("snapshots"), re.MULTILINE)[0]
    on_vault("restore", snapshot, "--target", tmp_path / "restored")
    want, have = fingerprint(restic_seeded.source), fingerprint(below(tmp_path / "restored", restic_seeded.source))
    assert differences(want, have) == []


def test_the_next_backup_of_the_same_source_adds_next_to_nothing(
    vaulted: tuple[Repository, Restic], restic_seeded: Seeded
) -> None:
    repository, on_vault = vaulted
    before = sum(stored.size_bytes for stored in repository.store.list())
    said = on_vault("backup", restic_seeded.source)
    assert re.search(r"Files: +0 new, +0 changed", said), said
    assert sum(stored.size_bytes for stored in repository.store.list()) - before < 20_000


def test_a_hold_stops_a_prune_but_no_backup(vaulted: tuple[Repository, Restic], tmp_path: Path) -> None:
    repository, on_vault = vaulted
    (tmp_path / "new").write_bytes(os.urandom(50_000))
    hold = repository.hold("test-hold")
    try:
        assert "locked" in on_vault("prune", ok=False)
        assert "saved" in on_vault("backup", tmp_path / "new")
        assert "locked" in on_vault("check", ok=False)
    finally:
        hold.release()
    on_vault("prune")
    assert "no errors were found" in on_vault("check")
