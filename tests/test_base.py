"""Secrets stay hidden, files are whole or absent, seals and seeds notice damage."""

from __future__ import annotations

import pickle
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from diskprep import clock, durable, escrow, process
from diskprep.errors import DataDamaged, DiskprepError, FormatTooNew, NotFound, StorageFull, ToolMissing, UsageError
from diskprep.seal import FileKind, Seal, SealedFile, load_seal, save_seal
from diskprep.secrets import Secret, check_new_passphrase, generate_passphrase, read_passphrase_file
from diskprep.seed import Seed, Staging, load_seed, parse_staging, save_seed

SEED = Seed(
    job_name="first-job",
    storage_account="account1",
    container="container",
    subscription_id="00000000-0000-4000-8000-000000000000",
    resource_group="group",
    location="westeurope",
    hostname="host",
    sources=("/srv/data",),
    repository_id="ab" * 32,
    escrow_public_key="cd" * 32,
    created="2026-01-01T00:00:00Z",
)
SEAL = Seal(
    job_name="first-job",
    repository_id="ab" * 32,
    snapshot="cd" * 32,
    created="2026-01-01T00:00:00Z",
    files=(SealedFile(name="data/00/" + "0" * 64, kind=FileKind.DATA, size_bytes=7, sha256="0" * 64),),
)


def test_a_secret_never_shows_itself() -> None:
    secret = Secret("hunter2hunter2hunter2")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", repr([secret])):
        assert "hunter2" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret == Secret("hunter2hunter2hunter2")
    assert secret != Secret("other")


def test_a_generated_passphrase_is_long_and_new() -> None:
    first, second = generate_passphrase(), generate_passphrase()
    assert first != second
    assert len(check_new_passphrase(first).reveal()) == 39


def test_a_short_passphrase_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        check_new_passphrase(Secret("too short"))
    assert "too short" not in str(caught.value)


def test_a_passphrase_file_loses_the_white_space_around_it(tmp_path: Path) -> None:
    (tmp_path / "p").write_text(" with spaces \r\n")
    assert read_passphrase_file(tmp_path / "p").reveal() == "with spaces"
    with pytest.raises(UsageError):
        read_passphrase_file(tmp_path / "none")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write_file(path, b"before")

    def parts() -> object:
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFull):
        durable.write_file(path, parts())  # type: ignore[arg-type]
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("[1]")
    with pytest.raises(DataDamaged):
        durable.read_json(tmp_path / "x")
    with pytest.raises(NotFound):
        durable.read_json(tmp_path / "y")


def test_a_seed_comes_back_and_its_damage_is_told(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    save_seed(staging, SEED)
    assert load_seed(staging) == SEED
    text = staging.seed_file.read_text()
    staging.seed_file.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(FormatTooNew):
        load_seed(staging)
    staging.seed_file.write_text(text.replace("first-job", "../../x"))
    with pytest.raises(DataDamaged):
        load_seed(staging)
    staging.seed_file.write_text(text.replace('"hostname": "host"', '"hostname": 5'))
    with pytest.raises(DataDamaged):
        load_seed(staging)


def test_the_original_way_to_name_a_staging_is_understood(tmp_path: Path) -> None:
    assert parse_staging(f"s:{tmp_path}") == parse_staging(str(tmp_path)) == Staging(tmp_path)


@pytest.mark.parametrize("name", ["con", "UPPER", "x", "ends-", "9starts", "a" * 25])
def test_a_job_name_that_the_service_would_refuse_is_refused(name: str) -> None:
    if name == "con":
        assert replace(SEED, job_name=name).job_name == name  # never becomes a file name on the disk
        return
    with pytest.raises(UsageError):
        replace(SEED, job_name=name)


def test_every_changed_byte_of_a_seal_is_found(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    save_seal(path, SEAL)
    assert load_seal(path) == SEAL
    text = path.read_text()
    for old, new in (("first-job", "other-job"), ('"size_bytes": 7', '"size_bytes": 8'), ("data/00", "data/01")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DataDamaged):
            load_seal(path)


def test_escrow_opens_for_its_own_purpose_only() -> None:
    public, private = escrow.generate()
    sealed = escrow.seal(public, Secret("111111-222222"), "disk A")
    assert escrow.unseal(private, sealed, "disk A").reveal() == "111111-222222"
    for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), b"", sealed[:10]):
        with pytest.raises(DataDamaged):
            escrow.unseal(private, wrong, "disk A")
    with pytest.raises(DataDamaged):
        escrow.unseal(private, sealed, "disk B")
    with pytest.raises(DataDamaged):
        escrow.unseal(escrow.generate()[1], sealed, "disk A")


def test_times_go_to_text_and_back() -> None:
    moment = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
    assert clock.parse_rfc3339(clock.rfc3339(moment)) == moment
    assert clock.parse_rfc3339("2026-02-03T05:05:06.789123456+01:00").microsecond == 789123
    with pytest.raises(ValueError, match="zone"):
        clock.parse_rfc3339("2026-02-03T04:05:06")


def test_a_child_gets_no_secrets_of_ours_and_its_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_VALUE", "do-not-pass-on")
    assert "CANARY" not in process.run(["env"])
    with pytest.raises(DiskprepError, match="exit status 3"):
        process.run(["sh", "-c", "exit 3"])
    with pytest.raises(ToolMissing):
        process.run(["no-such-program-anywhere"])


def test_bytes_that_come_in_pieces_are_received_whole_and_an_end_is_told() -> None:
    def say(end: socket.socket) -> None:
        for piece in (b"ab", b"", b"cde", b"f"):
            end.sendall(piece)
            process.receive_exactly(end, 1)

    child, ours = process.fork(say)
    with ours:
        ours.sendall(b"...")
        assert process.receive_exactly(ours, 0) == b""
        assert process.receive_exactly(ours, 4) == b"abcd"
        assert process.receive_exactly(ours, 1) == b"e"
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError):
            process.receive_exactly(ours, 2)
    process.wait(child)
