"""Several passphrases open one repository; none of them can be lost by a change that was cut off."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from passphrases import opened, opens, plant
from support import need, run

from diskprep import clock
from diskprep.errors import (
    DataDamaged,
    DiskprepError,
    JobConflict,
    Locked,
    NotFound,
    StorageUnavailable,
    UsageError,
    WrongPassphrase,
)
from diskprep.repository import keys
from diskprep.repository import lock as locks
from diskprep.repository.repository import Repository, create, open_repository
from diskprep.repository.slots import MAX_SLOTS, Slots
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore

FIRST = Secret("correct horse battery staple")
SECOND = Secret("Zwölf Boxkämpfer jagen")
CHEAP = keys.ScryptCost(n=16, r=1, p=1)
_ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)


@pytest.fixture
def slots(repository: Repository) -> Slots:
    return Slots(repository)


def spoil(store: DirectoryStore, name: str, content: bytes) -> None:
    path = store.root / "keys" / name
    path.chmod(0o600)
    path.write_bytes(content)


# -- what they do


def test_an_added_passphrase_opens_beside_the_first(store: DirectoryStore, slots: Slots) -> None:
    added = slots.add(SECOND, cost=CHEAP)
    assert opened(store, SECOND).current == added.id != slots.current == opened(store, FIRST).current
    listed = slots.all()
    assert {slot.id for slot in listed} == {added.id, slots.current}
    assert [slot.id for slot in listed if slot.current] == [slots.current]
    assert added.file is not None
    assert added.file.cost == CHEAP
    assert added.file.created is not None
    assert abs(added.file.created - clock.now()) < timedelta(minutes=1)
    assert not any(slot.damaged for slot in listed)
    assert list(store.list("locks/")) == []


def test_a_change_takes_the_old_passphrase_away_and_touches_nothing_else(store: DirectoryStore, slots: Slots) -> None:
    third = slots.add(Secret("a third one that stays"), cost=CHEAP).id
    before = {item.name: store.read(item.name) for item in store.list()}
    old = slots.current
    fresh = slots.change(SECOND, cost=CHEAP)
    assert (opens(store, FIRST), opens(store, SECOND)) == (False, True)
    assert slots.current == fresh.id
    assert fresh.current
    after = {item.name: store.read(item.name) for item in store.list()}
    assert {name for name in before if name not in after} == {f"keys/{old}"}
    assert {name for name in after if name not in before} == {f"keys/{fresh.id}"}
    assert all(after[name] == content for name, content in before.items() if name in after)
    assert f"keys/{third}" in after


def test_a_removed_passphrase_opens_nothing_any_more(store: DirectoryStore, slots: Slots) -> None:
    added = slots.add(SECOND, cost=CHEAP)
    assert slots.remove(added.id[:10].upper()).id == added.id
    assert (opens(store, FIRST), opens(store, SECOND)) == (True, False)


def test_the_only_slot_and_the_opened_one_are_not_removed(store: DirectoryStore, slots: Slots) -> None:
    with pytest.raises(UsageError, match="only one") as caught:
        slots.remove(slots.current[:8])
    assert "passphrase change" in caught.value.hint
    slots.add(SECOND, cost=CHEAP)
    with pytest.raises(UsageError, match="just opened") as caught:
        slots.remove(slots.current[:8])
    assert "another slot" in caught.value.hint
    assert opens(store, FIRST)
    assert opens(store, SECOND)


def test_a_slot_is_named_by_a_beginning_that_only_it_has(store: DirectoryStore, slots: Slots) -> None:
    for name in ("ab" + "0" * 62, "ab" + "1" * 62):
        plant(store, b"x", name)
    with pytest.raises(UsageError, match="2 slots start"):
        slots.remove("ab")
    for name in ("", "zz", "0" * 64, "../config"):
        with pytest.raises(NotFound):
            slots.remove(name)
    assert len(slots.all()) == 3
    slots.remove("ab0")
    assert len(slots.all()) == 2


def test_a_passphrase_has_one_slot(slots: Slots) -> None:
    slots.add(SECOND, cost=CHEAP)
    for passphrase in (FIRST, SECOND):
        with pytest.raises(UsageError, match="already"):
            slots.add(passphrase, cost=CHEAP)
    with pytest.raises(UsageError, match="old one"):
        slots.change(FIRST, cost=CHEAP)
    assert len(slots.all()) == 2


@pytest.mark.parametrize(
    "bad", ["fifteen charact", " sixteen characters", "sixteen characters\n", "sixteen\x00characters", "\udce4" * 16]
)
def test_a_passphrase_that_is_short_or_cannot_be_given_everywhere_is_refused(slots: Slots, bad: str) -> None:
    for act in (slots.add, slots.change):
        with pytest.raises(UsageError) as caught:
            act(Secret(bad), cost=CHEAP)
        assert bad not in caught.value.message + caught.value.hint
    assert len(slots.all()) == 1


def test_no_slot_is_added_that_restic_would_not_try(store: DirectoryStore, slots: Slots) -> None:
    for number in range(MAX_SLOTS - 1):
        slots.add(Secret(f"passphrase number {number:04}"), cost=CHEAP)
    with pytest.raises(UsageError, match="20 passphrases"):
        slots.add(SECOND, cost=CHEAP)
    slots.change(SECOND, cost=CHEAP)
    assert len(slots.all()) == MAX_SLOTS
    assert opens(store, SECOND)


def test_all_of_more_key_files_than_restic_tries_open_the_cheapest_first(
    store: DirectoryStore, repository: Repository
) -> None:
    passphrases = [Secret(f"passphrase number {number:04}") for number in range(MAX_SLOTS + 4)]
    for passphrase in passphrases:
        plant(store, keys.wrap(repository.key, passphrase, "h", CHEAP))
    document = json.loads(keys.wrap(repository.key, SECOND, "h", CHEAP))
    for number in range(3):  # each takes a minute to try
        plant(store, json.dumps({**document, "N": 1 << 15, "r": 8, "p": 1 << 10, "username": number}).encode())
    started = clock.monotonic_s()
    assert all(opens(store, passphrase) for passphrase in passphrases)
    assert clock.monotonic_s() - started < 20


# -- locks


def test_adding_shares_the_repository_and_the_rest_wants_it_alone(store: DirectoryStore, slots: Slots) -> None:
    spare = slots.add(Secret("another one, to be removed"), cost=CHEAP)
    other = open_repository(store, FIRST)
    with other.lock():
        slots.add(SECOND, cost=CHEAP)
        with pytest.raises(Locked):
            slots.change(Secret("never used passphrase"), cost=CHEAP)
        with pytest.raises(Locked):
            slots.remove(spare.id)
    with other.lock(exclusive=True), pytest.raises(Locked):
        slots.add(Secret("never used passphrase"), cost=CHEAP)
    assert len(slots.all()) == 3


def test_a_passphrase_is_changed_and_removed_while_disks_travel(store: DirectoryStore, slots: Slots) -> None:
    hold = open_repository(store, FIRST).hold("job-1")
    spare = slots.add(Secret("another one, to be removed"), cost=CHEAP)
    slots.remove(spare.id)
    slots.change(SECOND, cost=CHEAP)
    assert (opens(store, FIRST), opens(store, SECOND)) == (False, True)
    again = open_repository(store, SECOND)
    assert [item.name for item in store.list("locks/")] == [hold.name]
    with pytest.raises(Locked, match="transit"), again.lock(exclusive=True):
        pass


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_hold_hides_no_lock_beside_it(store: DirectoryStore, slots: Slots, exclusive: bool) -> None:
    spare = slots.add(Secret("another one, to be removed"), cost=CHEAP)
    other = open_repository(store, FIRST)
    other.hold("job-1")
    directory = locks.LockDirectory(store, other.key)
    name = directory.write(exclusive=exclusive, hostname="elsewhere", time=clock.now())
    for act in (lambda: slots.change(SECOND, cost=CHEAP), lambda: slots.remove(spare.id)):
        with pytest.raises(Locked, match="elsewhere"):
            act()
    assert len(slots.all()) == 2
    directory.delete(name)
    slots.remove(spare.id)


def test_a_backup_that_begins_while_a_change_settles_makes_the_change_give_way(
    store: DirectoryStore, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_repository(store, FIRST)
    hold = other.hold("job-1")
    directory = locks.LockDirectory(store, other.key)
    monkeypatch.setattr(
        clock, "sleep", lambda _: directory.write(exclusive=False, hostname="elsewhere", time=clock.now())
    )
    with pytest.raises(Locked, match="elsewhere"):
        slots.change(SECOND, cost=CHEAP)
    assert [slot.current for slot in slots.all()] == [True]
    assert {record.hostname for record in directory.records()} == {"elsewhere", f"{locks.HOLD_PREFIX}{hold.label}"}


def test_restic_is_kept_out_of_a_change_and_a_backup_of_restic_keeps_a_change_out(
    store: DirectoryStore, slots: Slots, tmp_path: Path
) -> None:
    other = open_repository(store, FIRST)
    other.hold("job-1")
    file = tmp_path / "passphrase"
    file.write_text(FIRST.reveal())
    for name in ("data", "index", "snapshots"):
        (store.root / name).mkdir()
    argv = [need("restic"), "-r", str(store.root), "--password-file", str(file), "--no-cache"]
    directory = locks.LockDirectory(store, other.key)
    with locks.locked(directory, exclusive=True, tolerate_holds=True):
        assert "locked exclusively" in run(*argv, "backup", file, ok=False)
    backup = subprocess.Popen(
        [*argv, "backup", "--stdin"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert backup.stdin is not None
    try:
        for _ in range(500):
            if len(directory.records()) == 2:
                break
            clock.sleep(0.05)
        with pytest.raises(Locked, match=rf"process {backup.pid}\b"):
            slots.change(SECOND, cost=CHEAP)
    finally:
        backup.communicate(b"from standard input", timeout=60)
    assert backup.returncode == 0
    slots.change(SECOND, cost=CHEAP)
    assert (opens(store, FIRST), opens(store, SECOND)) == (False, True)


def test_two_people_cannot_remove_each_other(store: DirectoryStore, slots: Slots) -> None:
    theirs = slots.add(SECOND, cost=CHEAP)
    them = opened(store, SECOND)
    slots.remove(theirs.id)
    with pytest.raises(NotFound, match="removed meanwhile"):
        them.remove(slots.current)
    with pytest.raises(NotFound, match="removed meanwhile"):
        them.change(Secret("never used passphrase"), cost=CHEAP)
    assert opens(store, FIRST)


# -- damage


@pytest.mark.parametrize("content", [b"", b"junk", b'{"kdf":"scrypt"}', b"[" * 100_000, b"\xff\xfe", b"{}", b'"a"'])
@pytest.mark.parametrize("name", ["0" * 64, "f" * 64])
def test_a_damaged_key_file_blocks_nobody_and_can_be_removed(
    store: DirectoryStore, slots: Slots, content: bytes, name: str
) -> None:
    plant(store, content, name)
    again = opened(store, FIRST)
    assert [(slot.id, slot.file) for slot in again.all() if slot.damaged] == [(name, None)]
    with pytest.raises(WrongPassphrase, match="1 of its key files"):
        open_repository(store, SECOND)
    again.remove(name[:8])
    assert [slot.damaged for slot in again.all()] == [""]


def test_a_key_file_that_cannot_be_read_blocks_nobody(
    store: DirectoryStore, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = plant(store, b"on a bad sector", "0" * 64)
    read = DirectoryStore.read

    def failing(self: DirectoryStore, wanted: str, offset: int = 0, length: int | None = None) -> bytes:
        if wanted.endswith(name):
            raise StorageUnavailable("cannot read it: Input/output error")
        return read(self, wanted, offset, length)

    monkeypatch.setattr(DirectoryStore, "read", failing)
    again = opened(store, FIRST)
    assert [slot.id for slot in again.all() if "Input/output" in slot.damaged] == [name]


def test_a_key_of_another_repository_with_the_same_passphrase_blocks_nobody(
    store: DirectoryStore, slots: Slots, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    create(DirectoryStore(tmp_path / "other"), FIRST, cost=CHEAP)
    (foreign,) = (tmp_path / "other/keys").iterdir()
    for name in ("0" * 64, "f" * 64):
        plant(store, foreign.read_bytes(), name)
    assert opened(store, FIRST).current == slots.current
    store.delete(f"keys/{slots.current}")
    with pytest.raises(DataDamaged, match="not its own"):
        open_repository(store, FIRST)


def test_all_key_files_damaged_is_told_as_damage_and_none_at_all_as_missing(
    store: DirectoryStore, slots: Slots
) -> None:
    spoil(store, slots.current, b"{")
    with pytest.raises(DataDamaged):
        open_repository(store, FIRST)
    store.delete(f"keys/{slots.current}")
    with pytest.raises(NotFound, match="no key file"):
        open_repository(store, FIRST)


def test_a_key_file_with_a_changed_label_still_opens_is_told_and_is_made_whole_by_a_change(
    store: DirectoryStore, slots: Slots
) -> None:
    other = slots.add(SECOND, cost=CHEAP)
    content = store.read(f"keys/{slots.current}")
    document = json.loads(content)
    spoil(store, slots.current, json.dumps({**document, "hostname": "elsewhere", "created": "yesterday"}).encode())
    again = opened(store, FIRST)
    (mine,) = [slot for slot in again.all() if slot.current]
    assert mine.damaged == "its hash is not its name"
    assert mine.file is not None
    assert (mine.file.hostname, mine.file.created) == ("elsewhere", None)
    with pytest.raises(UsageError, match="only whole one"):
        again.remove(other.id)
    again.change(Secret("a whole new passphrase"), cost=CHEAP)
    assert [slot.damaged for slot in again.all()] == ["", ""]


@pytest.mark.parametrize("fault", ["lost", "changed"])
def test_the_old_slot_stays_when_the_new_one_does_not_come_back_as_written(
    store: DirectoryStore, slots: Slots, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    write = DirectoryStore.write

    def lying(self: DirectoryStore, name: str, parts: list[bytes]) -> None:
        if name.startswith("keys/"):
            if fault == "lost":
                return
            parts = [bytes(parts[0]).replace(b'"hostname"', b'"Hostname"')]
        write(self, name, parts)

    monkeypatch.setattr(DirectoryStore, "write", lying)
    with pytest.raises(DiskprepError):
        slots.change(SECOND, cost=CHEAP)
    monkeypatch.undo()
    assert [slot.id for slot in slots.all()] == [slots.current]
    assert opens(store, FIRST)


# -- a container


def test_the_slots_of_a_vault_in_a_container_are_those_of_a_directory(azurite: Any) -> None:
    store = azurite.fresh_container("vault/")
    slots = Slots(create(store, FIRST, cost=CHEAP))
    slots.refuse_sealed()
    slots.add(SECOND, cost=CHEAP)
    store.write("keys/" + "0" * 64, [b"junk"])
    third = Secret("the third passphrase")
    slots.change(third, cost=CHEAP)
    again = Slots(open_repository(store, third))
    assert [(bool(slot.damaged), slot.current) for slot in again.all()].count((False, True)) == 1
    again.remove("0" * 64)
    again.remove(next(slot.id for slot in again.all() if not slot.current))
    assert [item.name for item in store.list("keys/")] == [f"keys/{again.current}"]
    for passphrase in (FIRST, SECOND):
        with pytest.raises(WrongPassphrase):
            open_repository(store, passphrase)


# -- a sealed staging


@pytest.mark.parametrize("named_by", ["repository", "link"])
def test_the_slots_of_a_sealed_staging_are_listed_but_not_changed(tmp_path: Path, named_by: str) -> None:
    staging = tmp_path / "staging"
    (staging / "repository").mkdir(parents=True)
    create(DirectoryStore(staging / "repository"), FIRST, cost=CHEAP)
    (tmp_path / "link").symlink_to("staging/repository")
    store = DirectoryStore({"repository": staging / "repository", "link": tmp_path / "link"}[named_by])
    opened(store, FIRST).refuse_sealed()
    (staging / "seal.json").write_text("{}")
    slots = opened(store, FIRST)
    assert len(slots.all()) == 1
    before = sorted(str(path) for path in staging.rglob("*"))
    acts: list[Callable[[], object]] = [
        lambda: slots.add(SECOND, cost=CHEAP),
        lambda: slots.change(SECOND, cost=CHEAP),
        lambda: slots.remove("0"),
    ]
    for act in acts:
        with pytest.raises(JobConflict) as caught:
            act()
        assert "publish" in caught.value.hint
    assert sorted(str(path) for path in staging.rglob("*")) == before


def test_another_repository_inside_a_sealed_staging_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "seal.json").write_text("{}")
    (tmp_path / "repository").mkdir()
    (tmp_path / "vault").mkdir()
    store = DirectoryStore(tmp_path / "vault")
    create(store, FIRST, cost=CHEAP)
    opened(store, FIRST).change(SECOND, cost=CHEAP)
    assert opens(store, SECOND)


# -- kill -9


def _change_killed_at(root: Path, line: int) -> bool:
    """Change the passphrase in a child that is killed before the `line`th line of ours; False when it ended itself."""
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame: FrameType, event: str, _argument: object) -> object:
            nonlocal count
            if not frame.f_code.co_filename.startswith(watched):
                return None
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        watched = tuple(str(_ROOT / "diskprep" / name) for name in ("repository/slots", "durable", "store/directory"))
        try:
            slots = opened(DirectoryStore(root), FIRST)
            sys.settrace(trace)  # type: ignore[arg-type]
            slots.change(SECOND, cost=CHEAP)
        finally:
            os._exit(0 if opens(DirectoryStore(root), SECOND) else 1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_change_that_is_killed_before_any_line_leaves_a_way_in_and_finishes_when_given_again(
    repository: Repository, store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a kill leaves does not depend on it
    seen = set()
    for line in itertools.count(1, step):
        copy = tmp_path / f"copy-{line}"
        shutil.copytree(store.root, copy)
        killed = _change_killed_at(copy, line)
        there = DirectoryStore(copy)
        state = (opens(there, FIRST), opens(there, SECOND))
        assert True in state, line
        seen.add(state)
        if state[0]:
            opened(there, FIRST).change(SECOND, cost=CHEAP)
        assert (opens(there, FIRST), opens(there, SECOND)) == (False, True), line
        assert len(opened(there, SECOND).all()) == 1, line
        shutil.rmtree(copy)
        if not killed:
            break
    assert line > 50
    assert seen == {(True, False), (True, True), (False, True)}
