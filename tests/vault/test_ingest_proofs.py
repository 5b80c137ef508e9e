"""How each pack is proven: read back, by a receipt of an earlier run, or by the service's MD5."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trip import JOB, SERIALS, Seeded, Trip, flip_middle, new_trip, overwrite

from diskprep import cleanup
from diskprep.errors import CleanupRefused, DataDamaged, FormatTooNew, IngestIncomplete, Locked
from diskprep.repository import lock as locks
from diskprep.seal import FileKind
from diskprep.store import ContentProperties, Store
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault import ingest as ingestion
from diskprep.vault import receipts as module
from diskprep.vault.certificate import Certificate
from diskprep.vault.ingest import Fault, PackFault, ingest
from diskprep.vault.receipts import Proof, Receipt, Receipts
from diskprep.vault.repair import find_bad_packs, repair


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is at the locks of these vaults."""
    monkeypatch.setattr(locks, "SETTLE_S", 0.0)


@pytest.fixture
def delivered(trip: Trip) -> Trip:
    trip.publish()
    trip.deliver()
    return trip


def bring(trip: Trip, *, originals: Store | None = None, faults: list[PackFault] | None = None) -> Certificate:
    return ingest(
        trip.container,
        trip.vault,
        trip.open(),
        trip.seal,
        trip.placement,
        job_name=JOB,
        certificate_path=trip.certificate_path,
        emit=trip.events.append,
        originals=originals,
        tell_fault=(faults if faults is not None else []).append,
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Folder and name of every object that is read whole."""
    found: list[tuple[Path, str]] = []
    real = DirectoryStore.read

    def record(self: DirectoryStore, name: str, *more: Any) -> bytes:
        if not more:
            found.append((self.root, name))
        return real(self, name, *more)

    monkeypatch.setattr(DirectoryStore, "read", record)
    return found


def receipts(trip: Trip) -> list[str]:
    return [stored.name for stored in trip.vault.list(f"x-seed/receipts-{JOB}/")]


def test_what_was_proven_is_not_read_again_when_the_rest_arrives(
    delivered: Trip, reads: list[tuple[Path, str]]
) -> None:
    late, *others = delivered.seal.data_packs
    delivered.container.delete(late.name)
    with pytest.raises(IngestIncomplete):
        bring(delivered)
    assert receipts(delivered)
    delivered.deliver([late])
    reads.clear()
    found = bring(delivered)
    packs = {pack.name for pack in delivered.seal.data_packs}
    assert [name for root, name in reads if root.name == "vault" and name in packs] == [late.name]
    assert (found.packs_read, found.packs_trusted) == (len(others) + 1, 0)
    assert found.began is not None
    assert found.began < found.created
    assert found.method == certificates.METHOD
    assert receipts(delivered) == []


def test_a_pack_that_changed_since_its_receipt_is_read_again(delivered: Trip) -> None:
    late, other, *_ = delivered.seal.data_packs
    delivered.container.delete(late.name)
    with pytest.raises(IngestIncomplete, match="1 missing"):
        bring(delivered)
    delivered.deliver([late])
    delivered.container.delete(other.name)
    flip_middle(delivered.folder / "vault" / other.name)
    with pytest.raises(IngestIncomplete, match="1 damaged"):
        bring(delivered)
    assert not delivered.certificate_path.exists()


@pytest.mark.parametrize("damage", ["flip", "other seal", "text"])
def test_receipts_that_are_not_ours_are_passed_over(
    delivered: Trip, reads: list[tuple[Path, str]], damage: str
) -> None:
    made = Receipts(
        delivered.vault, delivered.opened.key, JOB, "0" * 64 if damage == "other seal" else delivered.seal.digest
    )
    for pack in delivered.seal.data_packs:
        delivered.vault.copy_from(delivered.container, pack.name)
        state = DirectoryStore(delivered.folder / "vault").inspect(pack.name)
        assert state is not None
        made.add(pack.sha256, Receipt(version=state.version, proof=Proof.READ, time="2026-01-01T00:00:00Z"))
    made.write()
    (name,) = receipts(delivered)
    if damage == "flip":
        flip_middle(delivered.folder / "vault" / name)
    elif damage == "text":
        overwrite(delivered.folder / "vault" / name, b'{"seal": "x"}')
    reads.clear()
    bring(delivered)
    read = {name for root, name in reads if root.name == "vault"}
    assert {pack.name for pack in delivered.seal.data_packs} <= read


class _CutOff(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


def test_an_ingest_cut_off_before_any_write_or_delete_goes_on(delivered: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKS", 2)
    before, vault = delivered.folder / "before", delivered.folder / "vault"
    shutil.copytree(vault, before)
    real = {name: getattr(DirectoryStore, name) for name in ("write", "copy_from", "delete")}
    for cut_off_at in itertools.count():
        shutil.rmtree(vault)
        shutil.copytree(before, vault)
        delivered.certificate_path.unlink(missing_ok=True)
        left = itertools.count(cut_off_at, -1)
        for name, method in real.items():

            def step(self: Any, *more: Any, left: Iterator[int] = left, method: Any = method) -> Any:
                if next(left) <= 0:
                    raise _CutOff
                return method(self, *more)

            monkeypatch.setattr(DirectoryStore, name, step)
        try:
            bring(delivered)
        except _CutOff:
            ended = False
        else:
            ended = True
        for name, method in real.items():
            monkeypatch.setattr(DirectoryStore, name, method)
        certified = (vault / certificates.object_name(JOB)).exists()
        names = {stored.name for stored in delivered.vault.list("data/")}
        assert certified <= ({pack.name for pack in delivered.seal.data_packs} <= names)
        again = bring(delivered)
        assert (again.data_packs, again.packs_read) == (len(delivered.seal.data_packs),) * 2
        assert receipts(delivered) == []
        if ended:
            break
    assert cut_off_at > len(delivered.seal.data_packs)


def test_the_services_md5_is_trusted_where_it_is_that_of_the_stagings_file(
    delivered: Trip, reads: list[tuple[Path, str]]
) -> None:
    """A directory keeps an MD5 only where it is set, as an import does."""
    first, wrong, unsaid, *others = delivered.seal.data_packs
    originals = DirectoryStore(delivered.staging.repository)
    vault = DirectoryStore(delivered.folder / "vault")
    for pack in delivered.seal.data_packs:
        vault.copy_from(delivered.container, pack.name)
        if pack != unsaid:
            md5 = hashlib.md5(b"" if pack == wrong else originals.read(pack.name), usedforsecurity=False).digest()
            vault.set_properties(pack.name, ContentProperties(content_md5=md5))
    flip_middle(delivered.staging.repository / others[0].name)
    (delivered.staging.repository / others[1].name).unlink()
    reads.clear()
    found = bring(delivered, originals=originals)
    read = {name for root, name in reads if root.name == "vault"}
    packs = {pack.name for pack in delivered.seal.data_packs}
    assert read & packs == {wrong.name, unsaid.name, others[0].name, others[1].name}
    assert (found.packs_read, found.packs_trusted) == (4, len(packs) - 4)
    assert found.method == certificates.METHOD_MD5
    assert certificates.load(delivered.certificate_path) == found
    reads.clear()
    assert bring(delivered).packs_trusted == 0
    assert first.name in {name for root, name in reads if root.name == "vault"}


def test_a_blob_service_tells_the_md5s_and_copies_on_its_own(
    azurite: Any, restic_seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = new_trip(restic_seeded, tmp_path, azurite.fresh_container(), azurite.fresh_container("vault/"))
    trip.publish()
    trip.deliver()
    read, real = [], type(trip.vault).read

    def record(self: Any, name: str, *more: Any) -> bytes:
        read.append(name)
        return real(self, name, *more)

    monkeypatch.setattr(type(trip.vault), "read", record)
    found = bring(trip, originals=DirectoryStore(trip.staging.repository))
    assert (found.packs_read, found.packs_trusted) == (0, len(trip.seal.data_packs))
    assert not {pack.name for pack in trip.seal.data_packs} & set(read)
    assert (found.container, found.vault) == (trip.container.location, trip.vault.location)


def test_every_fault_is_told_with_its_disk(delivered: Trip) -> None:
    missing, short, damaged, *_ = delivered.seal.data_packs
    delivered.container.delete(missing.name)
    path = delivered.folder / "container" / short.name
    overwrite(path, path.read_bytes()[:-1])
    flip_middle(delivered.folder / "container" / damaged.name)
    faults: list[PackFault] = []
    with pytest.raises(IngestIncomplete):
        bring(delivered, faults=faults)
    told = {fault.name: (fault.fault, fault.disk, fault.size_bytes) for fault in faults}
    assert told == {
        pack.name: (fault, delivered.placement[pack.name], pack.size_bytes)
        for pack, fault in ((missing, Fault.MISSING), (short, Fault.WRONG_SIZE), (damaged, Fault.DAMAGED))
    }
    assert {fault.disk for fault in faults} == set(SERIALS)


@pytest.mark.parametrize("renamed", [" (2)", " (2) (3)"])
def test_a_pack_that_the_import_renamed_is_found(delivered: Trip, renamed: str) -> None:
    """One that came a second time; under its own name lies what came first, cut short."""
    one, other, *_ = delivered.seal.data_packs
    for pack, own in ((one, None), (other, b"cut short")):
        delivered.container.write(pack.name + renamed, [delivered.container.read(pack.name)])
        delivered.container.delete(pack.name)
        if own:
            delivered.container.write(pack.name, [own])
    assert bring(delivered).packs_read == len(delivered.seal.data_packs)


def in_place(trip: Trip) -> None:
    trip.publish()
    trip.container = trip.vault
    trip.deliver()


def test_in_place_nothing_is_copied_and_the_certificate_says_so(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place(trip)
    trip.container = DirectoryStore(trip.folder / "elsewhere" / ".." / "vault")  # the same by another path
    (trip.folder / "elsewhere").mkdir()
    before = {stored.name for stored in trip.vault.list()}
    written: list[str] = []
    real = DirectoryStore.write
    monkeypatch.setattr(DirectoryStore, "copy_from", lambda *_: pytest.fail("a copy onto itself"))
    monkeypatch.setattr(
        DirectoryStore, "write", lambda self, name, parts: (written.append(name), real(self, name, parts))[1]
    )
    found = bring(trip)
    assert found.container == found.vault
    assert not {name for name in written if name.startswith("data/")}
    assert {stored.name for stored in trip.vault.list()} == before | {certificates.object_name(JOB)}


def test_in_place_a_damaged_pack_stays_and_a_renamed_one_takes_its_place(trip: Trip) -> None:
    in_place(trip)
    damaged = trip.seal.data_packs[0]
    whole = trip.vault.read(damaged.name)
    flip_middle(trip.folder / "vault" / damaged.name)
    with pytest.raises(IngestIncomplete, match="1 damaged"):
        bring(trip)
    assert trip.vault.stat(damaged.name) is not None
    trip.vault.write(f"{damaged.name} (2)", [whole])
    bring(trip)
    assert trip.vault.read(damaged.name) == whole


def test_a_certificate_of_version_1_is_still_read(delivered: Trip) -> None:
    found = bring(delivered)
    first = replace(found, began=None, container=None, packs_read=None, packs_trusted=None)
    path = delivered.folder / "first.json"
    certificates.save(first, delivered.vault, path)
    assert '"version": 1' in path.read_text()
    assert "packs_read" not in path.read_text()
    assert certificates.load(path) == first
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataDamaged):
        certificates.load(path)
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(FormatTooNew):
        certificates.load(path)


@pytest.mark.parametrize("what", ["pack", "index"])
def test_a_certificate_that_does_not_hold_any_more_is_withdrawn_and_the_vault_held_again(trip: Trip, what: str) -> None:
    in_place(trip)
    proven = bring(trip)
    plan = cleanup.plan(trip.staging, trip.seal, proven, container=None, vault=trip.vault)
    file = trip.seal.data_packs[0] if what == "pack" else trip.seal.of_kind(FileKind.INDEX)[0]
    flip_middle(trip.folder / "vault" / file.name)
    with pytest.raises((IngestIncomplete, DataDamaged)):
        bring(trip)
    assert trip.vault.stat(certificates.object_name(JOB)) is None
    with pytest.raises(CleanupRefused, match="copy of the certificate"):
        cleanup.run(plan, trip.staging, trip.seal, proven, container=None, vault=trip.vault)
    assert [hold.label for hold in trip.open().find_holds()] == [JOB]
    assert trip.publish() == (0 if what == "pack" else file.size_bytes)
    trip.vault.write(file.name, [DirectoryStore(trip.staging.repository).read(file.name)])
    assert bring(trip).digest != proven.digest


def test_receipts_that_are_older_than_the_certificate_prove_nothing(
    delivered: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Receipts, "delete", lambda self: None)  # cut off when the certificate was there
    bring(delivered)
    assert receipts(delivered)
    path = delivered.folder / "vault" / delivered.seal.data_packs[0].name
    status = path.stat()
    flip_middle(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk decays
    for stored in list(delivered.container.list("data/")):
        delivered.container.delete(stored.name)
    with pytest.raises(IngestIncomplete, match="1 damaged"):
        bring(delivered)


def test_nobody_has_the_vault_alone_before_the_certificate_is_there(
    delivered: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals = certificates.save, []

    def save(*arguments: Any) -> None:
        with pytest.raises(Locked), delivered.open().lock(exclusive=True):
            pass
        refusals.append(1)
        real(*arguments)

    monkeypatch.setattr(certificates, "save", save)
    bring(delivered)
    assert refusals == [1]


def test_a_whole_pack_of_the_vault_is_never_replaced(delivered: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = delivered.seal.data_packs[0]
    whole = DirectoryStore(delivered.staging.repository).read(pack.name)
    delivered.vault.write(pack.name, [whole])  # sent again, for this disk was damaged
    flip_middle(delivered.folder / "container" / pack.name)
    real, reads = ingestion.verify_pack, []

    def misread(name: str, *more: Any) -> Any:
        if name == pack.sha256 and not reads:
            reads.append(name)
            raise DataDamaged("read wrongly once")
        return real(name, *more)

    monkeypatch.setattr(ingestion, "verify_pack", misread)
    with pytest.raises(IngestIncomplete, match="1 damaged"):
        bring(delivered)
    assert delivered.vault.read(pack.name) == whole
    bring(delivered)


def test_what_arrives_after_packs_were_dropped_still_gets_into_the_vault(delivered: Trip) -> None:
    lost, *others = delivered.seal.data_packs
    delivered.container.delete(lost.name)
    repository = delivered.open()
    bad = [pack for pack in find_bad_packs(repository) if pack.name == lost.name]
    assert repair(repository, bad, drop=True).dropped == 1  # its disk was lost, the others travel still
    with pytest.raises(IngestIncomplete, match="a repair has dropped 1 of"):
        bring(delivered)
    assert {stored.name for stored in delivered.vault.list("data/")} >= {pack.name for pack in others}
    assert not delivered.certificate_path.exists()
    assert find_bad_packs(delivered.open(), read_data=True) == ()
