"""Repositories with a cheap key derivation."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskprep.repository.keys import ScryptCost
from diskprep.repository.repository import Repository, create
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore

PASSPHRASE = Secret("correct horse battery staple")
CHEAP = ScryptCost(n=16, r=1, p=1)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "repository").mkdir()
    return DirectoryStore(tmp_path / "repository")


@pytest.fixture
def repository(store: DirectoryStore) -> Repository:
    return create(store, PASSPHRASE, cost=CHEAP)
