"""`disk certificate` and `disk export`, as an operator types them, for a disk that was really prepared."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from support import diskprep, diskprep_json, make_tree, run

SERIAL = "WD-PAPER1"
PASSPHRASE = "canary passphrase, long enough"


class Desk:
    """A staging with one finished disk."""

    def __init__(self, base: Path) -> None:
        self.base, self.staging = base, base / "staging"
        self.passphrase_file, self.sas_file = base / "passphrase", base / "container.sas"
        self.passphrase_file.write_text(PASSPHRASE + "\n")
        self.passphrase_file.chmod(0o600)
        self.sas_file.write_text("imported?sv=2020-02-10&se=2099-01-01T00%3A00%3A00Z&sp=rwdl&sig=canary-signature")
        self.secret = ("--passphrase-file", self.passphrase_file)
        source = make_tree(base / "source", megabytes=1)
        trip = ("--job", "paper-job", "--storage-account", "account1", "--container", "imported")
        azure = ("--subscription", "11111111-2222-4333-8444-555555555555", "--resource-group", "group")
        diskprep("stage", source, "--staging", self.staging, *trip, *azure, *self.secret)
        image = base / f"{SERIAL}.img"
        sas = ("--container-sas-file", self.sas_file, "--journals", base / "journals", "--image-size", "128M")
        diskprep("disk", "prepare", self.staging, image, *sas, "--quiet")
        self.password = self.disk("key", *self.secret)[0].strip()

    @property
    def certificates(self) -> Path:
        return self.staging / "certificates"

    def disk(self, command: str, *more: str | Path, serial: str = SERIAL, code: int = 0) -> tuple[str, str]:
        return diskprep("disk", command, serial, "--staging", self.staging, *more, code=code)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


def test_a_prepared_disk_has_its_certificate(desk: Desk) -> None:
    assert sorted(path.name for path in desk.certificates.iterdir()) == [f"disk-{SERIAL}.html", f"disk-{SERIAL}.json"]
    document = json.loads((desk.certificates / f"disk-{SERIAL}.json").read_bytes())
    plan = json.loads((desk.staging / "plan.json").read_bytes())["disks"][0]
    assert document["packs"] == len(plan["packs"]) > 0
    assert (document["serial"], document["job_name"]) == (SERIAL, "paper-job")
    assert document["read_back"]["seconds"] > 0


def test_the_certificate_is_made_again_as_it_was(desk: Desk) -> None:
    path = desk.certificates / f"disk-{SERIAL}.json"
    before = path.read_bytes()
    shutil.rmtree(desk.certificates)
    assert diskprep_json("disk", "certificate", SERIAL, "--staging", desk.staging) == json.loads(before)
    assert path.read_bytes() == before
    path.write_bytes(before.replace(b'"packs": ', b'"packs": 1'))
    out, _err = desk.disk("certificate")
    assert "all read back as written" in out
    assert path.read_bytes() == before


def test_the_certificate_goes_where_it_is_wanted(desk: Desk, tmp_path: Path) -> None:
    out, _err = desk.disk("certificate", "--to", tmp_path / "for the auditor")
    written = [Path(line) for line in out.splitlines()[1:]]
    assert [path.read_bytes() for path in written] == [
        (desk.certificates / f"disk-{SERIAL}.{kind}").read_bytes() for kind in ("json", "html")
    ]


def test_the_certificate_needs_no_passphrase_and_holds_no_secret(desk: Desk) -> None:
    for path in desk.certificates.iterdir():
        text = path.read_text()
        assert desk.password not in text
        assert "canary" not in text


def test_the_exported_papers_describe_the_disk(desk: Desk, tmp_path: Path) -> None:
    out, err = desk.disk("export", "--to", tmp_path / "out", *desk.secret)
    log, description = (Path(line) for line in out.splitlines())
    assert (log.name, description.name) == (f"{SERIAL}.jrn", f"{SERIAL}_DriveInfo_{SERIAL}.xml")
    told = ET.fromstring(description.read_bytes())
    assert told.findtext("BitLockerKey") == desk.password
    made = json.loads((desk.certificates / f"disk-{SERIAL}.json").read_bytes())
    assert (told.findtext("DriveId"), told.findtext("ManifestHash")) == (SERIAL, made["manifest_hash"])
    assert f"<DriveId>{SERIAL}</DriveId>" in log.read_text()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out", log, description)] == [
        0o700,
        0o600,
        0o600,
    ]
    assert "WARNING" in err
    assert "recovery password" in err
    assert desk.password not in out + err + log.read_text()


def test_the_export_is_repeatable_and_narrows_the_mode_of_a_file_that_is_there(desk: Desk, tmp_path: Path) -> None:
    description = tmp_path / f"{SERIAL}_DriveInfo_{SERIAL}.xml"
    description.write_text("old")
    description.chmod(0o666)
    desk.disk("export", "--to", tmp_path, *desk.secret)
    assert stat.S_IMODE(description.stat().st_mode) == 0o600
    assert desk.password in description.read_text()


def test_no_password_in_clear_goes_into_the_staging(desk: Desk, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(desk.staging)
    for folder in (desk.staging, link / "journals/../new"):
        assert "does not belong" in desk.disk("export", "--to", folder, *desk.secret, code=2)[1]
    run("sh", "-c", f"! grep -rqF {desk.password} '{desk.staging}'")


def test_a_wrong_passphrase_exports_nothing(desk: Desk, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not the passphrase of it\n")
    desk.disk("export", "--to", tmp_path / "out", "--passphrase-file", wrong, code=12)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_not_there_is_told(desk: Desk, tmp_path: Path) -> None:
    assert "no journal of disk" in desk.disk("certificate", serial="WD-OTHER", code=10)[1]
    assert "no journal of disk" in desk.disk("export", "--to", tmp_path, *desk.secret, serial="WD-OTHER", code=10)[1]
    desk.disk("certificate", serial="../seed", code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_told(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for command in (("certificate",), ("export", *desk.secret)):
        assert "cannot create the directory" in desk.disk(*command, "--to", tmp_path / "file" / "x", code=5)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
