"""ZFS: a snapshot of every dataset that holds source data, read through its hidden directory `.zfs/snapshot`.

All datasets of a pool are named in one command, which takes their snapshots at one moment; pools follow each other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from diskprep import process
from diskprep.errors import UsageError
from diskprep.source import display
from diskprep.view import owner
from diskprep.view.model import Place, Setting, Shown, join
from diskprep.view.mounts import Mount, read_mounts


def list_command() -> list[str]:
    return ["zfs", "list", "-H", "-p", "-t", "snapshot", "-o", "name"]


def take_commands(datasets: Sequence[str], name: str) -> list[list[str]]:
    """One command a pool."""
    pools: dict[str, list[str]] = {}
    for dataset in sorted(set(datasets)):
        pools.setdefault(dataset.partition("/")[0], []).append(f"{dataset}@{name}")
    return [["zfs", "snapshot", *snapshots] for snapshots in pools.values()]


def destroy_command(snapshot: str) -> list[str]:
    """Only ever of a snapshot that some run of diskprep named: without its name, the command deletes a dataset."""
    dataset, _, name = snapshot.partition("@")
    assert dataset
    assert owner.is_ours(name)
    return ["zfs", "destroy", snapshot]


def parse_list(text: str) -> tuple[str, ...]:
    """Full names of snapshots, as `list_command` prints them: one a line."""
    return tuple(line for line in text.splitlines() if "@" in line)


def is_dead(snapshot: str) -> bool:
    """Whether a dead run of this computer took it."""
    return owner.is_dead(snapshot.partition("@")[2])


def hidden_directory(mount: Mount, mounts: Sequence[Mount]) -> bytes:
    """`.zfs/snapshot` of the dataset; it is seen only where the dataset's own root is mounted. Raises UsageError."""
    for other in (mount, *mounts):
        if other.number == mount.number and other.root == b"/":
            return join(other.point, b".zfs/snapshot")
    raise UsageError(
        f"the dataset at {display(mount.point)} is not mounted as a whole anywhere",
        hint="mount it, or use --snapshot none",
    )


class ZfsSnapshots:
    """Snapshots of all datasets behind some places."""

    def __init__(self, places: Sequence[Place], setting: Setting) -> None:
        self._places, self._setting = places, setting
        self._datasets = sorted({os.fsdecode(place.mount.device) for place in places})

    @property
    def count(self) -> int:
        return len(self._datasets)

    @property
    def one_moment(self) -> bool:
        return len(take_commands(self._datasets, "")) == 1

    def prepare(self) -> None:
        mounts = list(read_mounts().values())
        for place in self._places:
            hidden_directory(place.mount, mounts)
        for snapshot in filter(is_dead, _list()):
            self._setting.clear(snapshot, destroy_command(snapshot))

    def take(self) -> None:
        for command in take_commands(self._datasets, self._setting.token):
            for snapshot in command[2:]:
                self._setting.cleanup.callback(_destroy_if_there, snapshot)
            process.run(command, own_session=True)

    def show(self) -> list[Shown]:
        mounts = list(read_mounts().values())
        name = os.fsencode(self._setting.token)
        return [
            Shown(place=place, at=place.at, location=join(hidden_directory(place.mount, mounts), name, place.inner))
            for place in self._places
        ]

    def check(self) -> None:
        """A ZFS snapshot lasts until it is destroyed."""


def _list() -> tuple[str, ...]:
    return parse_list(process.run(list_command(), own_session=True, errors_apart=True))


def _destroy_if_there(snapshot: str) -> None:
    if snapshot in _list():
        process.run(destroy_command(snapshot), own_session=True)
