"""What staging seals says of each index file which data packs it names, as the file itself says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import make_tree

from diskprep.repository import lock as locks
from diskprep.repository.keys import ScryptCost
from diskprep.repository.pack import BlobKind, object_name
from diskprep.seal import FileKind, load_seal
from diskprep.secrets import Secret
from diskprep.seed import Staging
from diskprep.source import Source
from diskprep.staging.stage import open_staged, stage
from diskprep.staging.writer import BackupOptions

PASSPHRASE = Secret("correct horse battery staple")


def test_a_staging_is_sealed_with_what_its_index_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)
    staging = Staging(tmp_path / "staging")
    stage(
        staging,
        [Source(os.fsencode(make_tree(tmp_path / "tree", megabytes=4)))],
        passphrase=PASSPHRASE,
        job_name="job",
        storage_account="someaccount",
        container="container",
        subscription_id="00000000-0000-4000-8000-000000000000",
        resource_group="group",
        location="westeurope",
        hostname="host",
        options=BackupOptions(pack_size_bytes=1 << 18),
        cost=ScryptCost(n=16, r=1, p=1),
    )
    seal = load_seal(staging.seal_file)
    assert seal.indexes is not None
    told = {name: {seal.files[place].name for place in places} for name, places in seal.indexes.items()}
    found = {
        name: {object_name(entry.pack) for entry in entries if entry.kind is BlobKind.DATA}
        for name, entries in open_staged(staging, PASSPHRASE).index_files()
    }
    assert told == {name: packs for name, packs in found.items() if packs}
    assert set().union(*told.values()) == {pack.name for pack in seal.data_packs}
    assert found.keys() == {file.name for file in seal.of_kind(FileKind.INDEX)}
    assert len(seal.data_packs) > 5
