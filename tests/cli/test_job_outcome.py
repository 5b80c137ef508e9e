"""A job that ended badly, as an operator meets it: the report, the repair, and the second trip that brings the rest."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support import diskprep, diskprep_json, make_tree

from diskprep import clock
from diskprep.cli.copylogs import Logs
from diskprep.events import silent
from diskprep.importjob.model import DriveStatus, JobState
from diskprep.importjob.saved import load_job, save_job
from diskprep.repair import placements
from diskprep.seal import load_seal
from diskprep.seed import Staging
from diskprep.store.directory import DirectoryStore

CONTAINER = "imported"
PASSPHRASE = "canary passphrase, long enough"
SERIALS = ("WD-A1", "WD-B2")
ADDRESS = [
    *("--return-recipient", "Operator", "--return-street", "1 Street", "--return-city", "Town"),
    *("--return-postal-code", "12345", "--return-country", "Netherlands", "--return-phone", "0123"),
    *("--return-email", "operator@example.org"),
]


class Desk:
    """A staging whose packs take two disks, and the stand-in of the service."""

    def __init__(self, base: Path) -> None:
        self.base, self.staging, self.practice = base, Staging(base / "staging"), base / "practice"
        self.vault, self.container = base / "vault", base / "practice/containers" / CONTAINER
        self.state = ("--state", base / "state")
        passphrase = base / "passphrase"
        passphrase.write_text(PASSPHRASE + "\n")
        passphrase.chmod(0o600)
        self.secret = ("--passphrase-file", passphrase)
        source = make_tree(base / "source", megabytes=155)  # enough for two packs on the second disk
        trip = ("--job", "unlucky-job", "--storage-account", "account1", "--container", CONTAINER)
        azure = ("--subscription", "11111111-2222-4333-8444-555555555555", "--resource-group", "group")
        diskprep("stage", source, "--staging", self.staging.root, *trip, *azure, *self.secret, "--quiet")
        diskprep("datacenter", "sas", self.practice, CONTAINER)
        self.prepare(self.staging.root, *SERIALS)

    def prepare(self, staging: Path, *serials: str) -> None:
        images = [self.base / f"{serial}.img" for serial in serials]
        sas = ("--container-sas-file", self.practice / f"{CONTAINER}.sas", "--image-size", "96M", "--quiet")
        diskprep("disk", "prepare", staging, *images, *sas, "--journals", self.base / "journals")

    def send(self, staging: Path, service: tuple[str, ...], job: str, number: str, *disks: str) -> str:
        diskprep("job", "create", staging, *service, *self.secret, *self.state)
        carried = ("--carrier", "DHL", "--tracking-number", number)
        diskprep("job", "ship", staging, *carried, *ADDRESS, *service, *self.state)
        package = [f"{disk.partition('=')[0]}={self.base / disk.partition('=')[0]}.img" for disk in disks]
        faults = [part for disk in disks if "=" in disk for part in ("--fault", disk)]
        return diskprep("datacenter", "receive", self.practice, job, *package, *faults, "--quiet")[0]

    def plan(self) -> dict[str, list[str]]:
        disks = json.loads(self.staging.plan_file.read_bytes())["disks"]
        return {disk["serial"]: disk["packs"] for disk in disks}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def service(desk: Desk) -> Iterator[tuple[str, ...]]:
    server = subprocess.Popen(
        [sys.executable, "-m", "diskprep", "datacenter", "serve", desk.practice], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    endpoint = server.stdout.readline().removeprefix("endpoint: ").strip()
    token = server.stdout.readline().removeprefix("token file: ").strip()
    yield "--endpoint", endpoint, "--token-file", token
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0


@pytest.fixture(scope="module")
def closed(desk: Desk, service: tuple[str, ...]) -> tuple[str, ...]:
    """The job went wrong: one disk did not open, one had damaged blocks. What a command needs to reach the service."""
    told = desk.send(desk.staging.root, service, "unlucky-job", "JD0001", "WD-A1=wrong-key", "WD-B2=blocks-damaged:1")
    assert "Closed" in told
    return service


def said(*arguments: str | Path, code: int) -> dict[str, Any]:
    document = json.loads(diskprep("job", "report", *arguments, "--json", code=code)[0])
    assert isinstance(document, dict)
    return document


def test_01_the_report_says_which_disks_and_files_why_and_what_to_do(desk: Desk, closed: tuple[str, ...]) -> None:
    out, err = diskprep("job", "report", desk.staging.root, *closed, "--container", desk.container, code=44)
    assert "import job unlucky-job: Closed" in out
    assert "drive WD-A1 does not open with the job's recovery password" in out
    assert "drive WD-B2 was copied in part: some files failed" in out
    assert "did not arrive whole; blocks that are not what the manifest says: 1" in out
    assert f"diskprep job repair {desk.staging.root}" in err
    assert "did not arrive" in err


def test_02_logs_may_be_given_by_hand_and_nobody_be_asked(desk: Desk, closed: tuple[str, ...]) -> None:
    whole = said(desk.staging.root, *closed, "--container", desk.container, code=44)
    logs = sorted((desk.container / "waies").glob("*_error.xml"))
    given = [part for log in logs for part in ("--log", log)]
    by_hand = said(desk.staging.root, "--offline", *given, code=44)
    assert by_hand["drives"] == whole["drives"]
    assert by_hand["repair"]["packs"].keys() == whole["repair"]["packs"].keys()
    assert len(whole["repair"]["packs"]) == len(desk.plan()["WD-A1"]) + 1
    full = said(desk.staging.root, *closed, "--container", desk.container, "--full", code=44)
    assert [drive["failed"] for drive in full["drives"]] == [drive["failed"] for drive in whole["drives"]]


def test_03_without_a_log_or_a_container_all_of_a_doubtful_disk_counts_as_missing(
    desk: Desk, closed: tuple[str, ...]
) -> None:
    document = said(desk.staging.root, *closed, code=44)
    assert [drive["files_known"] for drive in document["drives"]] == [True, False]
    assert len(document["repair"]["packs"]) == len(load_seal(desk.staging.seal_file).data_packs)


def test_04_a_log_that_is_none_and_a_disk_that_is_not_the_jobs_are_refused(
    desk: Desk, closed: tuple[str, ...], tmp_path: Path
) -> None:
    hostile = tmp_path / "log.xml"
    hostile.write_bytes(b'<!DOCTYPE x [<!ENTITY a "b">]><DriveLog>&a;</DriveLog>')
    assert "document type" in diskprep("job", "report", desk.staging.root, "--offline", "--log", hostile, code=30)[1]
    gone = ("--log", tmp_path / "gone.xml")
    diskprep("job", "report", desk.staging.root, "--offline", *gone, code=10)
    assert "WD-X" in diskprep("job", "report", desk.staging.root, "--offline", "--lost", "WD-X", code=2)[1]


def test_05_names_in_a_log_do_not_steer_the_terminal(desk: Desk, closed: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "hostile.xml"
    log.write_text(
        '<DriveLog><DriveId>WD-B2</DriveId><Blob Status="\x9b31mIOFailed"><BlobPath>\u202ec/\x9b2J</BlobPath>'
        "<FilePath>x</FilePath><Length>1</Length></Blob><Status>Odd\u2028</Status></DriveLog>",
        encoding="utf-8",
    )
    out, err = diskprep("job", "report", desk.staging.root, "--offline", "--log", log, code=44)
    assert all(sign.isprintable() or sign == "\n" for sign in out + err)
    assert "\\x9b2J" in out


def test_06_a_dry_run_of_the_repair_makes_nothing(desk: Desk, closed: tuple[str, ...]) -> None:
    logs = ("--container", desk.container)
    out, _err = diskprep("job", "repair", desk.staging.root, *closed, *logs, "--dry-run")
    assert "drive WD-A1 does not open with the job's recovery password: all of its packs" in out
    assert "drive WD-B2 was copied in part: some files failed: the packs that did not arrive" in out
    assert not desk.staging.repairs.exists()


def test_07_the_repair_is_made_once(desk: Desk, closed: tuple[str, ...]) -> None:
    arguments = ("job", "repair", desk.staging.root, *closed, "--container", desk.container)
    out, err = diskprep(*arguments)
    folder = desk.staging.repairs / "unlucky-job-r1"
    assert "repair unlucky-job-r1: " in out
    assert f"next: diskprep disk prepare {folder} DISK" in err
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = diskprep_json(*arguments)
    assert again["staging"] == str(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert set(again["sends"]) == set(again["packs"]) > set(desk.plan()["WD-A1"])
    assert "repair unlucky-job-r1: sends" in diskprep("job", "report", *arguments[2:], code=44)[0]
    assert "sends that already" in diskprep(*arguments, "--job", "other-name", code=42)[1]
    assert "cannot be the name" in diskprep(*arguments, "--job", "No Name", code=2)[1]


def test_08_the_repairs_disks_are_prepared_shipped_and_arrive(desk: Desk, closed: tuple[str, ...]) -> None:
    folder = desk.staging.repairs / "unlucky-job-r1"
    desk.prepare(folder, "WD-C3", "WD-D4")
    diskprep("disk", "verify", desk.base / "WD-C3.img", "--staging", folder, *desk.secret)
    used = [disk["serial"] for disk in json.loads((folder / "plan.json").read_bytes())["disks"]]
    assert "unlucky-job-r1" in desk.send(folder, closed, "unlucky-job-r1", "JD0002", *used)
    out, err = diskprep("job", "report", folder, *closed, "--container", desk.container)
    assert "drive WD-C3 was copied" in out
    assert f"diskprep vault ingest {desk.staging.root} " in err
    found = placements(desk.staging)
    assert {found[pack] for pack in desk.plan()["WD-A1"]} <= set(used)
    assert "WD-B2" in found.values()


def test_09_nothing_of_the_first_job_is_missing_any_more(desk: Desk, closed: tuple[str, ...]) -> None:
    arguments = (desk.staging.root, *closed, "--container", desk.container)
    out, err = diskprep("job", "report", *arguments)
    assert "does not open with the job's recovery password" in out
    assert "to be sent again" not in out
    assert "next: diskprep vault ingest" in err
    assert "nothing is to be sent again" in diskprep("job", "repair", *arguments)[0]
    logs = [
        part for log in sorted((desk.container / "waies").glob("unlucky-job_*_error.xml")) for part in ("--log", log)
    ]
    offline = (desk.staging.root, "--offline", *logs)
    assert "next: diskprep vault ingest" in diskprep("job", "report", *offline)[1]
    assert "nothing is to be sent again" in diskprep("job", "repair", *offline)[0]


def test_10_the_vault_is_proven_whole(desk: Desk, closed: tuple[str, ...]) -> None:
    diskprep("vault", "publish", desk.staging.root, "--vault", desk.vault, *desk.secret, "--quiet")
    arguments = ("--container", desk.container, "--vault", desk.vault, *desk.secret)
    certificate = ("--certificate", desk.base / "certificate.json")
    assert "all read back" in diskprep("vault", "ingest", desk.staging.root, *arguments, *certificate, "--quiet")[0]


def test_11_a_job_that_the_service_forgot_is_told_as_it_was_last_seen(
    desk: Desk, closed: tuple[str, ...], tmp_path: Path
) -> None:
    copied = Staging(tmp_path / "staging")
    shutil.copytree(desk.staging.root, copied.root, ignore=shutil.ignore_patterns("repository", "repairs"))
    save_job(copied, replace(load_job(copied).job, name="forgotten"))
    out, _err = diskprep("job", "report", copied.root, *closed, "--container", desk.container)
    assert "the service has no job forgotten any more" in out
    drives = tuple(DriveStatus(drive_id=serial) for serial in SERIALS)
    save_job(copied, replace(load_job(copied).job, state=JobState.CREATING, drives=drives))
    for command in ("report", "repair"):
        assert "create it again" in diskprep("job", command, copied.root, *closed, code=43)[1]
    assert diskprep("job", "repair", copied.root, *closed, "--lost", "WD-A1", "--dry-run")[0]


def test_12_logs_are_found_by_their_names_where_the_job_does_not_say(
    desk: Desk, closed: tuple[str, ...], tmp_path: Path
) -> None:
    job = load_job(desk.staging).job
    nameless = replace(job, drives=tuple(replace(d, error_log_uri="", verbose_log_uri="") for d in job.drives))
    data = next((desk.container / "waies").glob("*WD-B2*_error.xml")).read_bytes()
    store = DirectoryStore(tmp_path / "container")
    for folder, name in (
        ("waimportexport/waies", "other-job_WD-B2_20260101-000000-000_error.xml"),
        ("waimportexport/waies", "unlucky-jobs_WD-B2_20260103-000000-000_error.xml"),
        ("waimportexport/waies", "unlucky-job_WD-B2_20260101-000000-000_error.xml"),
        ("waimportexport/waies", "unlucky-job_WD-B2_20260102-000000-000_error.xml"),
    ):
        store.write(f"{folder}/{name}", [data if "0102" in name else b"<damaged"])
    logs = Logs(nameless, silent)
    logs.read_store(store, full=False)
    assert (list(logs.found), logs.notes) == (["WD-B2"], [])
    assert len(logs.found["WD-B2"].failed) == 1
    logs = Logs(replace(nameless, name="a-third-job"), silent)
    logs.read_store(store, full=False)
    assert not logs.found

    later = DirectoryStore(tmp_path / "databoxcopylog")
    entry = "<ErroredEntity Path='a'><Category>UploadErrorWin32</Category></ErroredEntity>"
    later.write("order_WD-B2_CopyLog_7.xml", [f"{entry}<CopyLog><Status>Failed</Status></CopyLog>".encode()])
    later.write("order_WD-A1_CopyLog_7.xml", [b"<CopyLog><Status>Fai"])
    logs = Logs(nameless, silent)
    logs.read_store(later, full=False)
    assert logs.found["WD-B2"].status == "Failed"
    assert len(logs.notes) == 1
    assert "order_WD-A1_CopyLog_7.xml cannot be used" in logs.notes[0]


def test_13_a_containers_signature_suffices_to_read_the_logs(
    desk: Desk, closed: tuple[str, ...], tmp_path: Path, azurite: Any
) -> None:
    account = azurite.account
    store = account.container(CONTAINER)
    for path in (desk.container / "waies").glob("*_error.xml"):
        store.write(f"waies/{path.name}", [path.read_bytes()])
    signature = tmp_path / "container.sas"
    signature.write_text(account.container_sas(CONTAINER, clock.now() + timedelta(days=1)).reveal())
    where = ("--container", f"{azurite.url}/{CONTAINER}", "--container-sas-file", signature)
    document = said(desk.staging.root, "--offline", *where, code=44)
    assert [drive["fate"] for drive in document["drives"]] == ["failed", "in part"]
    assert len(document["repair"]["packs"]) == len(load_seal(desk.staging.seal_file).data_packs)
    assert "sig=" not in json.dumps(document)


def test_14_an_account_that_is_not_on_this_computer_is_not_told_a_signature_in_clear(
    desk: Desk, closed: tuple[str, ...], tmp_path: Path
) -> None:
    signature = tmp_path / "container.sas"
    signature.write_text(f"{CONTAINER}?sv=2021&sig=canary")
    where = ("--container", f"http://192.0.2.1/{CONTAINER}", "--container-sas-file", signature)
    told = diskprep("job", "report", desk.staging.root, "--offline", *where, code=2)[1]
    assert "in clear" in told
    assert "canary" not in told
