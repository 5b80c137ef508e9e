"""restic and diskprep open, add, change and remove each other's passphrases of one repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from passphrases import opened, opens, plant
from support import need, run

from diskprep.errors import UsageError
from diskprep.repository import keys
from diskprep.repository.repository import Repository, create, open_repository
from diskprep.repository.slots import MAX_SLOTS, Slots
from diskprep.secrets import Secret, read_passphrase_file
from diskprep.store.directory import DirectoryStore

FIRST = Secret("correct horse battery staple")
SECOND = Secret("Zwölf Boxkämpfer jagen")
CHEAP = keys.ScryptCost(n=16, r=1, p=1)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "repository").mkdir()
    return DirectoryStore(tmp_path / "repository")


@pytest.fixture
def repository(store: DirectoryStore) -> Repository:
    return create(store, FIRST, cost=CHEAP)


@pytest.fixture
def slots(repository: Repository) -> Slots:
    return Slots(repository)


class Restic:
    """restic on our repository, with a passphrase."""

    def __init__(self, store: DirectoryStore, folder: Path) -> None:
        self.program, self.store, self.folder = need("restic"), store, folder
        for name in ("data", "index", "locks", "snapshots"):
            (store.root / name).mkdir(exist_ok=True)

    def __call__(
        self, passphrase: Secret[str], *arguments: str | Path, ok: bool = True, home: Path | None = None
    ) -> str:
        file = self.folder / "restic-passphrase"
        file.write_text(passphrase.reveal(), encoding="utf-8")
        options = ("-r", self.store.root, "--password-file", file, "--no-cache")
        return run(self.program, *options, *arguments, ok=ok, env={"HOME": str(home or self.folder)})


@pytest.fixture
def restic(store: DirectoryStore, repository: Repository, tmp_path: Path) -> Restic:
    return Restic(store, tmp_path)


def test_restic_opens_what_we_add_and_not_what_we_changed_or_removed(restic: Restic, slots: Slots) -> None:
    third = Secret("the third one, to be removed")
    spare = slots.add(third, cost=CHEAP)
    slots.add(SECOND)
    for passphrase in (FIRST, SECOND, third):
        restic(passphrase, "cat", "config")
    new = Secret("the new one, after a change")
    slots.change(new, cost=CHEAP)
    slots.remove(spare.id)
    for passphrase in (FIRST, third):
        assert "wrong password" in restic(passphrase, "cat", "config", ok=False)
    listed = restic(new, "key", "list", "--json")
    assert {key["id"]: key["current"] for key in json.loads(listed)} == {
        slot.id[:8]: slot.current for slot in slots.all()
    }
    assert "no errors were found" in restic(new, "check")


def test_we_list_open_change_and_remove_what_restic_adds(
    restic: Restic, store: DirectoryStore, slots: Slots, tmp_path: Path
) -> None:
    (tmp_path / "new").write_text(SECOND.reveal(), encoding="utf-8")
    restic(FIRST, "key", "add", "--new-password-file", tmp_path / "new", "--user", "somebody", "--host", "elsewhere")
    (theirs,) = [slot for slot in slots.all() if not slot.current]
    assert theirs.file is not None
    assert (theirs.file.username, theirs.file.hostname, theirs.damaged) == ("somebody", "elsewhere", "")
    assert theirs.file.created is not None
    assert opened(store, SECOND).current == theirs.id
    with pytest.raises(UsageError, match="already"):
        slots.add(SECOND, cost=CHEAP)
    fresh = opened(store, SECOND).change(Secret("in place of what restic made"), cost=CHEAP)
    assert "wrong password" in restic(SECOND, "cat", "config", ok=False)
    slots.remove(fresh.id)
    restic(FIRST, "key", "add", "--new-password-file", tmp_path / "new")
    slots.remove(next(slot.id for slot in slots.all() if not slot.current))
    assert "wrong password" in restic(SECOND, "cat", "config", ok=False)
    assert "no errors were found" in restic(FIRST, "check")


def test_restic_changes_and_removes_what_we_made(
    restic: Restic, store: DirectoryStore, slots: Slots, tmp_path: Path
) -> None:
    added = slots.add(SECOND, cost=CHEAP)
    (tmp_path / "new").write_text("restic's new passphrase")
    restic(SECOND, "key", "passwd", "--new-password-file", tmp_path / "new")
    assert not opens(store, SECOND)
    assert opens(store, Secret("restic's new passphrase"))
    assert added.id not in {slot.id for slot in slots.all()}
    restic(Secret("restic's new passphrase"), "key", "remove", slots.current)
    assert not opens(store, FIRST)


def test_a_key_file_that_stops_restic_is_removed_by_us(restic: Restic, store: DirectoryStore, slots: Slots) -> None:
    for number in range(8):  # restic meets them in the directory's order
        plant(store, b"", f"{number}" * 64)
    assert "Fatal" in restic(FIRST, "cat", "config", ok=False)
    for number in range(8):
        opened(store, FIRST).remove(f"{number}" * 8)
    restic(FIRST, "cat", "config")


@pytest.mark.parametrize(
    "content",
    [
        b"%s",
        b"%s\n",
        b"\r\n \t%s \t\r\n\n",
        b"\xef\xbb\xbf%s\n",
        "%s\u2003\u00a0\u3000".encode(),
        b"%s\x1c",
        b"%s\nsecond line\n",
        b"one\x00two %s",
        b"l\xe4tin %s\n",
        b"%s" * 4000,
        "\ufeff%s\r\n".encode("utf-16-le"),
        "\ufeff%s\r\n".encode("utf-16-be"),
    ],
)
def test_a_passphrase_file_means_to_us_what_it_means_to_restic(
    restic: Restic, store: DirectoryStore, repository: Repository, tmp_path: Path, content: bytes
) -> None:
    wide = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(content[:2])
    file = tmp_path / "passphrase"
    file.write_bytes(content.replace("%s".encode(wide or "utf-8"), "Zwölf Boxkämpfer".encode(wide or "utf-8")))
    plant(store, keys.wrap(repository.key, read_passphrase_file(file), "h", CHEAP))
    run(restic.program, "-r", store.root, "--password-file", file, "--no-cache", "cat", "config")
    store.delete(f"keys/{repository.slot}")
    assert opened(store, read_passphrase_file(file)).current


def test_the_passphrase_is_all_that_another_computer_needs(
    restic: Restic, slots: Slots, store: DirectoryStore, tmp_path: Path
) -> None:
    slots.change(SECOND, cost=CHEAP)
    (tmp_path / "elsewhere" / "home").mkdir(parents=True)
    moved = DirectoryStore(tmp_path / "elsewhere" / "repository")
    shutil.copytree(store.root, moved.root)
    shutil.rmtree(store.root)
    assert opened(moved, SECOND).all()[0].current
    there = Restic(moved, tmp_path / "elsewhere")
    assert "no errors were found" in there(SECOND, "check", home=tmp_path / "elsewhere" / "home")


@pytest.mark.slow
def test_restic_tries_as_many_key_files_as_we_make(restic: Restic, store: DirectoryStore, slots: Slots) -> None:
    passphrases = [FIRST]
    for number in range(MAX_SLOTS - 1):
        passphrases.append(Secret(f"passphrase number {number:04}"))
        slots.add(passphrases[-1], cost=CHEAP)
    passphrases.append(Secret("one more than restic tries"))
    plant(store, keys.wrap(open_repository(store, FIRST).key, passphrases[-1], "h", CHEAP))
    told = [restic(passphrase, "cat", "config", ok=False) for passphrase in passphrases]
    assert sum("maximum number of keys" in text for text in told) == 1  # so one fewer all open


def test_a_file_whose_hash_is_not_its_name_opens_with_both(restic: Restic, store: DirectoryStore, slots: Slots) -> None:
    content = store.read(f"keys/{slots.current}")
    store.delete(f"keys/{slots.current}")
    plant(store, content, "0" * 64)
    restic(FIRST, "cat", "config")
    assert opened(store, FIRST).current == "0" * 64
