"""From the container to a certified vault; and everything that must prevent a certificate."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trip import JOB, PASSPHRASE, SERIALS, Seeded, Trip, below, flip_middle, new_trip, overwrite, restic

from diskprep.compare import differences, fingerprint
from diskprep.errors import DataDamaged, IngestIncomplete, JobConflict, NotFound, WrongPassphrase
from diskprep.events import Note, silent
from diskprep.repository import keys
from diskprep.repository.repository import open_repository
from diskprep.repository.slots import Slots
from diskprep.seal import FileKind, save_seal
from diskprep.secrets import Secret
from diskprep.store import StoredObject
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate
from diskprep.vault import ingest as ingestion
from diskprep.vault.check import check
from diskprep.vault.restore import restore

NEW = Secret("the passphrase after a change")
CHEAP = keys.ScryptCost(n=16, r=1, p=1)


@pytest.fixture
def delivered(trip: Trip) -> Trip:
    """The small part is online, the packs are in the container."""
    trip.publish()
    trip.deliver()
    return trip


def in_directory(store: Any, name: str) -> Path:
    return Path(store.root / name)


def test_a_seed_arrives_whole_and_is_certified(delivered: Trip) -> None:
    trip = delivered
    found = trip.ingest()
    assert {stored.name: stored.size_bytes for stored in trip.vault.list()}.items() >= {
        file.name: file.size_bytes for file in trip.seal.files
    }.items()
    assert (found.seal_digest, found.repository_id) == (trip.seal.digest, trip.seal.repository_id)
    assert found.snapshots == (trip.seal.snapshot,)
    assert (found.data_packs, found.files) == (len(trip.seal.data_packs), len(trip.seal.files))
    assert certificate.load(trip.certificate_path) == found
    assert certificate.load_from_vault(trip.vault, JOB) == found
    restic(trip.folder / "vault", trip.password_file, "check", "--read-data")


def test_the_whole_way_through_a_blob_service(azurite: Any, restic_seeded: Seeded, tmp_path: Path) -> None:
    trip = new_trip(restic_seeded, tmp_path, azurite.fresh_container(), azurite.fresh_container("vault/"))
    trip.publish()
    trip.deliver()
    trip.ingest()
    repository = open_repository(trip.vault, Secret(PASSPHRASE))
    assert check(repository, read_data=True).problems == ()
    restore(repository, "latest", tmp_path / "restored", emit=silent)
    assert differences(fingerprint(trip.source), fingerprint(below(tmp_path / "restored", trip.source))) == []


def test_only_what_is_not_a_data_pack_goes_online_and_only_once(trip: Trip) -> None:
    assert trip.publish() == sum(file.size_bytes for file in trip.seal.online_files)
    assert {stored.name for stored in trip.vault.list()} == {file.name for file in trip.seal.online_files}
    assert trip.publish() == 0
    flip_middle(in_directory(trip.vault, trip.seal.of_kind(FileKind.TREE)[0].name))
    assert trip.publish() == trip.seal.of_kind(FileKind.TREE)[0].size_bytes


def test_a_vault_that_lived_on_is_not_published_to_again(trip: Trip) -> None:
    trip.publish()
    in_directory(trip.vault, trip.seal.of_kind(FileKind.INDEX)[0].name).unlink()
    with pytest.raises(JobConflict, match="has changed since"):
        trip.publish()


def test_a_certified_vault_is_not_published_to_again(delivered: Trip) -> None:
    delivered.ingest()
    with pytest.raises(JobConflict, match="already"):
        delivered.publish()


def test_a_vault_that_somebody_else_begins_to_fill_is_refused(trip: Trip) -> None:
    trip.vault.write(f"keys/{'0' * 64}", [b"{}"])
    with pytest.raises(JobConflict, match="somebody else"):
        trip.publish()
    assert {stored.name for stored in trip.vault.list()} == {f"keys/{'0' * 64}"}


def test_an_index_that_is_missing_costs_no_pack(delivered: Trip) -> None:
    for file in delivered.seal.data_packs:  # imported straight into the vault
        delivered.vault.write(file.name, [delivered.container.read(file.name)])
    in_directory(delivered.vault, delivered.seal.of_kind(FileKind.INDEX)[0].name).unlink()
    before = {stored.name for stored in delivered.vault.list("data/")}
    for container in (delivered.vault, delivered.container):
        delivered.container = container
        with pytest.raises(IngestIncomplete, match="went online"):
            delivered.ingest()
        assert {stored.name for stored in delivered.vault.list("data/")} == before


def test_a_backup_during_ingestion_is_no_damage(delivered: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    vault, news = in_directory(delivered.vault, "config").parent, delivered.folder / "news"
    news.mkdir()
    (news / "file").write_bytes(b"written meanwhile" * 1000)
    real = ingestion._bring_packs

    def and_back_up(*arguments: Any) -> Any:
        proofs = real(*arguments)
        restic(vault, delivered.password_file, "backup", "--host", "host", news)
        return proofs

    monkeypatch.setattr(ingestion, "_bring_packs", and_back_up)
    assert len(delivered.ingest().snapshots) == 2


def test_the_config_is_published_last_so_that_a_part_is_no_repository(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = DirectoryStore.write

    def record(self: DirectoryStore, name: str, parts: Any) -> None:
        written.append(name)
        real(self, name, parts)

    monkeypatch.setattr(DirectoryStore, "write", record)
    trip.publish()
    kinds = {file.name: file.kind for file in trip.seal.files}
    order = list(dict.fromkeys(kinds[name] for name in written))
    assert order == [FileKind.TREE, FileKind.INDEX, FileKind.SNAPSHOT, FileKind.KEY, FileKind.CONFIG]


def test_a_changed_staging_file_is_not_published(trip: Trip) -> None:
    flip_middle(trip.staging.repository / trip.seal.of_kind(FileKind.TREE)[0].name)
    with pytest.raises(DataDamaged):
        trip.publish()
    assert trip.vault.stat("config") is None


class _CutOff(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


def test_a_first_publish_cut_off_before_any_file_is_completed_by_the_second(
    trip: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, wanted = DirectoryStore.write, {file.name for file in trip.seal.online_files}
    shutil.copytree(trip.folder / "vault", trip.folder / "empty")
    for cut_off_at in range(len(wanted)):
        shutil.rmtree(trip.folder / "vault")
        shutil.copytree(trip.folder / "empty", trip.folder / "vault")
        left = itertools.count(cut_off_at, -1)

        def write(self: DirectoryStore, name: str, parts: Any, left: Iterator[int] = left) -> None:
            if next(left) <= 0:
                raise _CutOff
            real(self, name, parts)

        monkeypatch.setattr(DirectoryStore, "write", write)
        with pytest.raises(_CutOff):
            trip.publish()
        monkeypatch.setattr(DirectoryStore, "write", real)
        there = {stored.name for stored in trip.vault.list()}
        assert there < wanted
        assert "config" not in there
        assert trip.publish() > 0
        assert {stored.name for stored in trip.vault.list()} == wanted
    restic(trip.folder / "vault", trip.password_file, "cat", "config")


def test_a_passphrase_changed_after_publishing_stays_changed_through_publish_ingest_and_check(trip: Trip) -> None:
    trip.publish()
    opened = open_repository(trip.vault, Secret(PASSPHRASE))
    opened.hold(JOB)  # as the command places it
    Slots(opened).change(NEW, cost=CHEAP)
    assert trip.publish() == 0
    with pytest.raises(WrongPassphrase):
        open_repository(trip.vault, Secret(PASSPHRASE))
    trip.deliver()
    assert trip.ingest(open_repository(trip.vault, NEW)).seal_digest == trip.seal.digest
    with pytest.raises(WrongPassphrase):
        open_repository(trip.vault, Secret(PASSPHRASE))
    trip.password_file = trip.folder / "new passphrase"
    trip.password_file.write_text(NEW.reveal())
    (hold,) = open_repository(trip.vault, NEW).find_holds()
    hold.release()
    restic(trip.folder / "vault", trip.password_file, "check", "--read-data")


def test_a_passphrase_changed_while_publishing_again_is_not_undone(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    trip.publish()
    slots, real = Slots(open_repository(trip.vault, Secret(PASSPHRASE))), DirectoryStore.read
    last = trip.seal.of_kind(FileKind.SNAPSHOT)[-1].name

    def read(self: DirectoryStore, name: str, *more: Any) -> bytes:
        if (self.root, name) == (trip.folder / "vault", last) and slots.current == opener:
            slots.change(NEW, cost=CHEAP)
        return real(self, name, *more)

    opener = slots.current
    monkeypatch.setattr(DirectoryStore, "read", read)
    assert trip.publish() == 0
    assert slots.current != opener
    assert [stored.name for stored in trip.vault.list("keys/")] == [f"keys/{slots.current}"]


def test_a_key_file_that_was_damaged_is_made_whole_and_one_that_was_added_stays(trip: Trip) -> None:
    trip.publish()
    added = Slots(open_repository(trip.vault, Secret(PASSPHRASE))).add(NEW, cost=CHEAP).id
    (sealed,) = trip.seal.of_kind(FileKind.KEY)
    flip_middle(in_directory(trip.vault, sealed.name))
    assert trip.publish() == sealed.size_bytes
    assert trip.vault.read(sealed.name) == DirectoryStore(trip.staging.repository).read(sealed.name)
    assert {stored.name for stored in trip.vault.list("keys/")} == {sealed.name, f"keys/{added}"}


def test_a_vault_of_another_repository_is_left_alone(trip: Trip) -> None:
    trip.vault.write("config", [b"the config of somebody else"])
    with pytest.raises(JobConflict):
        trip.publish()
    assert [stored.name for stored in trip.vault.list()] == ["config"]


def test_missing_short_and_damaged_packs_name_their_disks_and_the_rest_is_in(delivered: Trip) -> None:
    trip = delivered
    on_a = [file for file in trip.seal.data_packs if trip.placement[file.name] == SERIALS[0]]
    on_b = [file for file in trip.seal.data_packs if trip.placement[file.name] == SERIALS[1]]
    in_directory(trip.container, on_a[0].name).unlink()
    short = in_directory(trip.container, on_b[0].name)
    overwrite(short, short.read_bytes()[:-1])
    flip_middle(in_directory(trip.container, on_b[1].name))
    with pytest.raises(IngestIncomplete) as caught:
        trip.ingest()
    assert f"3 of {len(trip.seal.data_packs)} packs" in caught.value.message
    assert "disk DISK-A: 1 missing" in caught.value.message
    assert "disk DISK-B: 1 damaged, 1 of the wrong size" in caught.value.message
    faults = {on_a[0].name, on_b[0].name, on_b[1].name}
    assert sum(isinstance(event, Note) and event.item in SERIALS for event in trip.events) == 3
    there = {stored.name for stored in trip.vault.list("data/")}
    assert {file.name for file in trip.seal.data_packs} - there == faults
    assert not trip.certificate_path.exists()
    with pytest.raises(NotFound):
        certificate.load_from_vault(trip.vault, JOB)
    trip.deliver([on_a[0], on_b[0], on_b[1]])
    trip.ingest()


def test_a_second_ingest_copies_nothing_but_verifies_everything(
    delivered: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = delivered
    trip.ingest()
    copies: list[str] = []
    monkeypatch.setattr(DirectoryStore, "copy_from", lambda self, source, name: copies.append(name))
    trip.ingest()
    assert copies == []
    monkeypatch.undo()
    flip_middle(in_directory(trip.vault, trip.seal.data_packs[0].name))
    trip.ingest()  # still in the container, so it is brought again
    in_directory(trip.container, trip.seal.data_packs[0].name).unlink()
    flip_middle(in_directory(trip.vault, trip.seal.data_packs[0].name))
    with pytest.raises(IngestIncomplete, match="1 damaged"):
        trip.ingest()


def test_an_ingest_killed_at_any_moment_goes_on(delivered: Trip) -> None:
    trip = delivered
    program = (
        "import sys\nfrom pathlib import Path\nfrom diskprep.seal import load_seal\n"
        "from diskprep.secrets import Secret\nfrom diskprep.events import silent\n"
        "from diskprep.store.directory import DirectoryStore\nfrom diskprep.vault.ingest import ingest\n"
        "from diskprep.repository.repository import open_repository\n"
        "container, vault, seal, certificate = map(Path, sys.argv[1:])\n"
        f"repository = open_repository(DirectoryStore(vault), Secret({PASSPHRASE!r}))\n"
        "print('ready', flush=True)\n"
        "ingest(DirectoryStore(container), DirectoryStore(vault), repository, load_seal(seal), {},\n"
        f"    job_name={JOB!r}, certificate_path=certificate, emit=silent)\n"
    )
    save_seal(trip.folder / "seal.json", trip.seal)
    paths = [trip.folder / name for name in ("container", "vault", "seal.json", "certificate.json")]
    for delay_s in (0.0, 0.01, 0.03, 0.06):
        child = subprocess.Popen([sys.executable, "-c", program, *map(str, paths)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for stored in trip.vault.list("data/"):
            assert hashlib.sha256(trip.vault.read(stored.name)).hexdigest() == stored.name.rpartition("/")[2]
    assert trip.ingest().seal_digest == trip.seal.digest


def test_a_pack_of_another_seal_is_not_accepted(delivered: Trip) -> None:
    other = b"x" * 100
    name = hashlib.sha256(other).hexdigest()
    stranger = replace(delivered.seal.data_packs[0], name=f"data/{name[:2]}/{name}", size_bytes=len(other), sha256=name)
    delivered.container.write(stranger.name, [other])
    delivered.seal = replace(delivered.seal, files=(*delivered.seal.files, stranger))
    with pytest.raises(IngestIncomplete, match="no index names"):
        delivered.ingest()


def test_online_files_are_proven_too(delivered: Trip) -> None:
    flip_middle(in_directory(delivered.vault, delivered.seal.of_kind(FileKind.TREE)[0].name))
    with pytest.raises(IngestIncomplete, match="went online"):
        delivered.ingest()
    delivered.publish()
    delivered.ingest()


def test_a_vault_of_another_repository_is_not_certified(delivered: Trip) -> None:
    delivered.seal = replace(delivered.seal, repository_id="0" * 64)
    with pytest.raises(JobConflict):
        delivered.ingest()


def test_a_vault_whose_index_names_a_lost_pack_is_not_certified(delivered: Trip) -> None:
    """A later backup's pack was lost: not part of the seal, but the vault is not whole."""
    trip = delivered
    (trip.folder / "more").write_bytes(os.urandom(100_000))
    before = {stored.name for stored in trip.vault.list("data/")}
    restic(trip.folder / "vault", trip.password_file, "backup", trip.folder / "more")
    new = {stored.name for stored in trip.vault.list("data/")} - before
    trip.ingest()
    for name in new:
        trip.vault.delete(name)
    trip.certificate_path.unlink()
    with pytest.raises(DataDamaged, match="is missing"):
        trip.ingest()
    assert not trip.certificate_path.exists()


@pytest.mark.parametrize("field", ["job_name", "seal_digest", "files", "snapshots", "digest"])
def test_an_edited_certificate_is_refused(delivered: Trip, field: str) -> None:
    delivered.ingest()
    path = delivered.certificate_path
    document = json.loads(path.read_text())
    document[field] = 1 if field == "files" else ["0" * 64] if field == "snapshots" else "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(DataDamaged):
        certificate.load(path)


def test_a_check_finds_what_is_missing_and_what_is_damaged(delivered: Trip) -> None:
    trip = delivered
    trip.ingest()
    repository = trip.open()
    whole = check(repository, read_data=True)
    assert whole.problems == ()
    assert whole.files > 300
    flip_middle(in_directory(trip.vault, trip.seal.data_packs[0].name))
    assert check(repository).problems == ()
    assert len(check(repository, read_data=True).problems) == 1
    trip.vault.delete(trip.seal.data_packs[1].name)
    assert len(check(repository, read_data=True).problems) == 3
    for file in trip.seal.of_kind(FileKind.TREE):
        trip.vault.delete(file.name)
    assert any("directory" in problem for problem in check(repository).problems)


def test_the_store_lists_what_the_certificate_counts(delivered: Trip) -> None:
    found = delivered.ingest()
    listed: list[StoredObject] = list(delivered.vault.list())
    extra = {"x-seed/certificate-test-job.json"}
    assert sum(stored.size_bytes for stored in listed if stored.name not in extra) == found.files_bytes
