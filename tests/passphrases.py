"""Passphrases of a repository, for tests of what adds, changes and removes them."""

from __future__ import annotations

import hashlib

from diskprep.errors import WrongPassphrase
from diskprep.repository.repository import open_repository
from diskprep.repository.slots import Slots
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore


def opened(store: DirectoryStore, passphrase: Secret[str]) -> Slots:
    return Slots(open_repository(store, passphrase))


def opens(store: DirectoryStore, passphrase: Secret[str]) -> bool:
    try:
        open_repository(store, passphrase)
    except WrongPassphrase:
        return False
    return True


def plant(store: DirectoryStore, content: bytes, name: str | None = None) -> str:
    """Put a key file there as anybody could; its name is its hash unless it is told otherwise."""
    name = name or hashlib.sha256(content).hexdigest()
    store.write(f"keys/{name}", [content])
    return name
