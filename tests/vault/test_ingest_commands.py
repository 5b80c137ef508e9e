"""`vault publish`, `ingest` and `settings` as they are given on the command line, and the backup that follows."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from blobserver import Azurite, tier
from support import make_tree
from typer.testing import CliRunner

from diskprep.cli import ingesting
from diskprep.cli.places import ingested_file
from diskprep.errors import IngestIncomplete, JobConflict, NotFound, NotSignedIn, UsageError
from diskprep.repository.repository import Repository, open_repository
from diskprep.seal import Seal, load_seal
from diskprep.secrets import Secret
from diskprep.seed import Staging
from diskprep.source import Source
from diskprep.source.selection import Pattern, Selection
from diskprep.staging.stage import stage
from diskprep.staging.writer import BackupOptions
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates

PASSPHRASE = "a passphrase of the tests"
JOB = "first-job"


@dataclass(slots=True)
class Journey:
    """A staged seed with container and vault, and the command line."""

    folder: Path
    source: Path
    staging: Staging
    seal: Seal

    @property
    def vault(self) -> Path:
        return self.folder / "vault"

    def run(self, *arguments: str | Path, passphrase: bool = True) -> str:
        """What a command prints on stdout; its error is raised."""
        application = typer.Typer()
        for command in (ingesting.publish, ingesting.ingest, ingesting.settings):
            application.command(command.__name__)(command)
        given = ["--passphrase-file", self.folder / "passphrase"] if passphrase else []
        result = CliRunner().invoke(application, [*map(str, arguments), *map(str, given)])
        self.printed = result.stdout
        if result.exception is not None:
            raise result.exception
        return str(result.stdout)

    printed: str = ""

    def deliver(self) -> None:
        container, local = DirectoryStore(self.folder / "container"), DirectoryStore(self.staging.repository)
        for pack in self.seal.data_packs:
            container.write(pack.name, [local.read(pack.name)])
        packs = {"A": [pack.name for pack in self.seal.data_packs[:1]], "B": [p.name for p in self.seal.data_packs[1:]]}
        disks = [{"serial": serial, "packs": names} for serial, names in packs.items()]
        self.staging.plan_file.write_text(json.dumps({"format": "diskprep-plan", "version": 1, "disks": disks}))

    def open(self) -> Repository:
        return open_repository(DirectoryStore(self.vault), Secret(PASSPHRASE))

    def ingest(self, *more: str | Path) -> str:
        arguments = [self.staging.root, "--vault", self.vault, "--container", self.folder / "container"]
        return self.run("ingest", *arguments, "--certificate", self.folder / "certificate.json", *more)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A staging and its source, made once."""
    folder = tmp_path_factory.mktemp("staged")
    source = make_tree(folder / "source", megabytes=12)
    (source / "left out.tmp").write_bytes(b"x" * 3_000_000)
    stage(
        Staging(folder / "staging"),
        [Source(str(source).encode())],
        passphrase=Secret(PASSPHRASE),
        job_name=JOB,
        storage_account="account",
        container="import",
        subscription_id="00000000-0000-0000-0000-000000000000",
        resource_group="group",
        location="westeurope",
        hostname=socket.gethostname(),
        options=BackupOptions(
            selection=Selection(exclude=(Pattern(text=b"*.tmp", origin="--exclude"),)), pack_size_bytes=4 << 20
        ),
    )
    return folder / "staging", source


@pytest.fixture
def journey(staged: tuple[Path, Path], tmp_path: Path) -> Iterator[Journey]:
    staging = Staging(staged[0])
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    for name in ("container", "vault"):
        (tmp_path / name).mkdir()
    yield Journey(tmp_path, staged[1], staging, load_seal(staging.seal_file))
    staging.plan_file.unlink(missing_ok=True)


def test_publish_holds_the_vault_and_fixes_its_redundancy(journey: Journey) -> None:
    arguments = ("publish", journey.staging.root, "--vault", journey.vault)
    said = json.loads(journey.run(*arguments, "--redundancy", "lrs", "--json"))
    assert said["settings"]["redundancy"] == "LRS"
    assert said["sent_bytes"] == sum(file.size_bytes for file in journey.seal.online_files)
    assert [hold.label for hold in journey.open().find_holds()] == [JOB]
    assert json.loads(journey.run(*arguments, "--json"))["sent_bytes"] == 0
    with pytest.raises(JobConflict, match="LRS"):
        journey.run(*arguments, "--redundancy", "GRS")


def test_publish_alone_means_grs(journey: Journey) -> None:
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    assert "GRS" in journey.run("settings", "--vault", journey.vault)


def test_settings_are_set_and_shown(journey: Journey) -> None:
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    assert "everything is kept" in journey.run("settings", "--vault", journey.vault)
    assert "7 daily, 5 yearly" in journey.run(
        "settings", "--vault", journey.vault, "--keep-daily", "7", "--keep-yearly", "5"
    )
    found = json.loads(journey.run("settings", "--vault", journey.vault, "--json"))
    kept = {"daily": 7, "weekly": 0, "monthly": 0, "yearly": 5}
    assert found == {"redundancy": "GRS", "access_tier": "default", "retention": kept}


def test_a_folder_has_no_tiers_and_nothing_lies_in_archive(journey: Journey) -> None:
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    with pytest.raises(UsageError, match="has no access tiers"):
        journey.run("settings", "--vault", journey.vault, "--access-tier", "cool")
    with pytest.raises(UsageError, match="nothing there can be read"):
        journey.run("settings", "--vault", journey.vault, "--access-tier", "Archive")
    with pytest.raises(UsageError, match="'warm' is not an access tier"):
        journey.run("settings", "--vault", journey.vault, "--access-tier", "warm")
    assert "data packs: default" in journey.run("settings", "--vault", journey.vault, "--access-tier", "default")


def test_packs_come_from_another_account_into_the_tier_that_was_set(
    journey: Journey, azurite: Azurite, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    container, vault = azurite.container_elsewhere(), azurite.fresh_container()
    files = {"vault": azurite.key, "container": azurite.elsewhere_key}
    for name, key in files.items():
        (journey.folder / f"{name}.key").write_text(key.reveal())
        (journey.folder / f"{name}.key").chmod(0o600)
    at_vault = ("--vault", vault.location, "--account-key-file", journey.folder / "vault.key")
    journey.run("publish", journey.staging.root, *at_vault)
    assert "data packs: cool" in journey.run("settings", *at_vault, "--access-tier", "cool")
    journey.deliver()
    local = DirectoryStore(journey.staging.repository)
    for pack in journey.seal.data_packs:
        container.write(pack.name, [local.read(pack.name)])
    imported = ("--container", container.location, "--certificate", journey.folder / "certificate.json", "--no-backup")
    with pytest.raises(NotSignedIn):
        journey.run("ingest", journey.staging.root, *at_vault, *imported)
    said = journey.run(
        "ingest", journey.staging.root, *at_vault, *imported, "--container-key-file", journey.folder / "container.key"
    )
    assert f"whole in {vault.location}" in said
    assert {tier(vault, pack.name) for pack in journey.seal.data_packs} == {"Cool"}
    told = said + caplog.text + "".join(capfd.readouterr())
    assert "pass through" not in told
    assert "sig=" not in told


def test_ingestion_releases_the_hold_and_takes_the_first_incremental(journey: Journey) -> None:
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    journey.deliver()
    (journey.source / "new").write_bytes(b"written while the disks travelled")
    said = json.loads(journey.ingest("--json"))
    (journey.source / "new").unlink()
    assert journey.open().find_holds() == []
    first, second = journey.open().snapshots()
    assert (first.id, second.parent) == (journey.seal.snapshot, first.id)
    assert said["backup"]["snapshot"] == second.id
    assert said["backup"]["left_out"] == 1
    assert said["backup"]["bytes_stored"] < 1_000_000  # what the seed left out is not in it
    assert said["certificate"]["digest"] == certificates.load(journey.folder / "certificate.json").digest
    assert said["certificate"]["packs_read"] == len(journey.seal.data_packs)


@pytest.mark.parametrize("why", ["not wanted", "another host", "source gone"])
def test_the_first_incremental_is_left_out(journey: Journey, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    journey.deliver()
    moved = journey.source.with_name("elsewhere")
    if why == "another host":
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
    elif why == "source gone":
        journey.source.rename(moved)
    try:
        said = json.loads(journey.ingest("--json", *(["--no-backup"] if why == "not wanted" else [])))
    finally:
        if moved.exists():
            moved.rename(journey.source)
    assert said["backup"] is None
    assert said["certificate"]["data_packs"] == len(journey.seal.data_packs)
    assert len(journey.open().snapshots()) == 1


def test_what_is_missing_is_listed_with_all_disks(journey: Journey) -> None:
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    journey.deliver()
    gone = journey.seal.data_packs[:2]
    for pack in gone:
        DirectoryStore(journey.folder / "container").delete(pack.name)
    with pytest.raises(IngestIncomplete, match=r"disk A: 1 missing; disk B: 1 missing"):
        journey.ingest("--json")
    said = json.loads(journey.printed)
    assert said["certificate"] is None
    assert [(fault["name"], fault["disk"], fault["fault"]) for fault in said["faults"]] == [
        (pack.name, disk, "missing") for pack, disk in zip(gone, "AB", strict=True)
    ]
    assert [hold.label for hold in journey.open().find_holds()] == [JOB]


def test_in_place_needs_no_container_and_one_of_both_is_given(journey: Journey) -> None:
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    journey.deliver()
    for pack in journey.seal.data_packs:
        DirectoryStore(journey.vault).copy_from(DirectoryStore(journey.folder / "container"), pack.name)
    arguments = ("ingest", journey.staging.root, "--vault", journey.vault, "--no-backup", "--json")
    arguments += ("--certificate", journey.folder / "certificate.json")
    for wrong in ((), ("--in-place", "--container", journey.folder / "container")):
        with pytest.raises(UsageError):
            journey.run(*arguments, *wrong)
    said: dict[str, Any] = json.loads(journey.run(*arguments, "--in-place"))
    assert said["certificate"]["container"] == said["certificate"]["vault"] == str(journey.vault)


def test_a_backup_while_the_disks_travel_builds_on_the_seed(journey: Journey) -> None:
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    taken = ingesting.incremental(
        journey.open(),
        [Source(str(journey.source).encode())],
        options=BackupOptions(selection=Selection(exclude=(Pattern(text=b"*.tmp", origin="--exclude"),))),
        emit=lambda _event: None,
    )
    assert taken.files_unmodified == taken.files
    assert taken.bytes_added < 100_000
    assert [hold.label for hold in journey.open().find_holds()] == [JOB]


def test_a_vault_that_was_not_published_is_told(journey: Journey) -> None:
    journey.deliver()
    with pytest.raises(NotFound, match="no config"):
        journey.ingest()
    assert list(DirectoryStore(journey.vault).list()) == []


def test_packs_that_did_not_arrive_are_sent_again_by_a_repair(journey: Journey) -> None:
    ingested_file(journey.staging).unlink(missing_ok=True)  # another test's, whose staging this is, too
    journey.run("publish", journey.staging.root, "--vault", journey.vault)
    journey.deliver()
    (journey.folder / "container" / journey.seal.data_packs[0].name).unlink()
    with pytest.raises(IngestIncomplete) as lacking:
        journey.ingest("--no-backup")
    named = f"{journey.staging.root} --container {journey.folder}/container"
    assert f"diskprep job report {named}" in lacking.value.hint
    assert f"diskprep job repair {named}" in lacking.value.hint
    assert not ingested_file(journey.staging).exists()
    journey.deliver()
    journey.ingest("--no-backup")
    assert ingested_file(journey.staging).read_bytes() == (journey.folder / "certificate.json").read_bytes()
    ingested_file(journey.staging).unlink()
