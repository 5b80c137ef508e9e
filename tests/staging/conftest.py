"""Repositories with a cheap key derivation, and small trees to back up."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskprep.repository import lock as locks
from diskprep.repository.keys import ScryptCost
from diskprep.repository.repository import Repository, create
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "repository").mkdir()
    store = DirectoryStore(tmp_path / "repository")
    return create(store, Secret("correct horse battery staple"), cost=ScryptCost(n=16, r=1, p=1))
