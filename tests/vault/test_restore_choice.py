"""Restoring a part, into what is there, with reading back, or only to see: each does what its word says."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import need, need_root, plain_user
from trip import PASSPHRASE, Trip, below, flip_middle

from diskprep.compare import differences, fingerprint
from diskprep.errors import DataDamaged, NotFound, RestoreDiffers, UsageError
from diskprep.events import silent
from diskprep.repository.repository import Repository, open_repository
from diskprep.secrets import Secret
from diskprep.source import Source
from diskprep.source.selection import Pattern
from diskprep.staging.writer import backup
from diskprep.store.directory import DirectoryStore
from diskprep.vault import filling, hands
from diskprep.vault import restore as restoring
from diskprep.vault.choice import Choice
from diskprep.vault.restore import RestoreResult, restore
from diskprep.vault.target import TEMPORARY_PREFIX, Overwrite


@pytest.fixture
def vaulted(trip: Trip) -> Trip:
    """A vault in which all packs are, without the ceremony of an ingest."""
    trip.publish()
    for file in trip.seal.data_packs:
        trip.vault.write(file.name, [DirectoryStore(trip.staging.repository).read(file.name)])
    return trip


def given(trip: Trip, target: Path, **more: Any) -> RestoreResult:
    return restore(trip.open(), "latest", target, emit=silent, **more)


def patterns(*texts: str) -> tuple[Pattern, ...]:
    return tuple(Pattern(text=os.fsencode(text)) for text in texts)


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# -- items


@pytest.mark.parametrize(
    ("flags", "choice"),
    [
        (["--include", "*.txt"], {"include": patterns("*.txt")}),
        (["--include", "deep"], {"include": patterns("deep")}),
        (["--include", "{source}/odd"], {"include": patterns("{source}/odd")}),
        (["--include", "{source}/*/deep/random-1*"], {"include": patterns("{source}/*/deep/random-1*")}),
        (["--iinclude", "SMALL-1?"], {"iinclude": patterns("SMALL-1?")}),
        (["--exclude", "deep"], {"exclude": patterns("deep")}),
        (["--exclude", "small-*", "--exclude", "!small-7"], {"exclude": patterns("small-*", "!small-7")}),
        (["--iexclude", "RANDOM-*"], {"iexclude": patterns("RANDOM-*")}),
    ],
)
def test_patterns_choose_the_files_that_restic_chooses(
    vaulted: Trip, tmp_path: Path, flags: list[str], choice: dict[str, tuple[Pattern, ...]]
) -> None:
    source = str(vaulted.source)
    flags = [flag.format(source=source) for flag in flags]
    choice = {
        name: patterns(*(os.fsdecode(p.text).format(source=source) for p in given)) for name, given in choice.items()
    }
    given(vaulted, tmp_path / "ours", choice=Choice(**choice))
    restic = (
        need("restic"),
        "-r",
        str(tmp_path / "vault"),
        "--password-file",
        str(vaulted.password_file),
        "--no-cache",
    )
    done = subprocess.run(
        [*restic, "restore", "latest", "--target", str(tmp_path / "theirs"), *flags], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    files = [{p for p in everything(tmp_path / who) if not (tmp_path / who / p).is_dir()} for who in ("ours", "theirs")]
    assert files[0] == files[1]
    assert files[0]


def test_a_folder_is_made_only_for_what_is_in_it(vaulted: Trip, tmp_path: Path) -> None:
    given(vaulted, tmp_path / "out", choice=Choice(include=patterns("random-1.bin")))
    restored = below(tmp_path / "out", vaulted.source)
    assert everything(restored) == {"folder 1", "folder 1/deep", "folder 1/deep/random-1.bin"}
    there, here = (vaulted.source / "folder 1").stat(), (restored / "folder 1").stat()
    assert (there.st_mode, there.st_mtime_ns) == (here.st_mode, here.st_mtime_ns)


def test_several_paths_are_restored_and_one_that_is_not_there_is_told(vaulted: Trip, tmp_path: Path) -> None:
    paths = [os.fsencode(vaulted.source / name) for name in ("odd/suid", "folder 1/deep", "empty")]
    given(vaulted, tmp_path / "out", choice=Choice(paths=tuple(paths)))
    restored = below(tmp_path / "out", vaulted.source)
    assert {p.name for p in restored.iterdir()} == {"odd", "folder 1", "empty"}
    assert everything(restored / "odd") == {"suid"}
    whole = fingerprint(vaulted.source / "folder 1/deep")
    assert differences(whole, fingerprint(restored / "folder 1/deep")) == []
    with pytest.raises(NotFound, match="never there"):
        given(vaulted, tmp_path / "none", choice=Choice(paths=(paths[0], os.fsencode(vaulted.source / "never there"))))
    with pytest.raises(UsageError):
        Choice(paths=(b"/a/../b",))


# -- what is there already


@pytest.fixture
def restored(vaulted: Trip, tmp_path: Path) -> Path:
    """A whole restore, and where the source's folder is in it."""
    given(vaulted, tmp_path / "again")
    return below(tmp_path / "again", vaulted.source)


def test_what_is_there_stays_with_never_and_what_is_missing_comes(
    vaulted: Trip, restored: Path, tmp_path: Path
) -> None:
    (restored / "empty").write_text("mine")
    (restored / "odd/suid").unlink()
    (restored / "odd/added").write_text("mine, too")
    (restored / "odd").chmod(0o711)
    result = given(vaulted, tmp_path / "again", overwrite=Overwrite.NEVER)
    assert (restored / "empty").read_text() == "mine"
    assert (restored / "odd/suid").read_bytes() == (vaulted.source / "odd/suid").read_bytes()
    assert (restored / "odd/added").read_text() == "mine, too"
    assert stat.S_IMODE((restored / "odd").stat().st_mode) == 0o711
    assert (result.files, result.replaced) == (1, 0)
    assert result.kept > 300


def test_always_makes_everything_equal_and_removes_nothing_else(vaulted: Trip, restored: Path, tmp_path: Path) -> None:
    (restored / "empty").write_text("mine")
    (restored / "odd/dangling").unlink()
    (restored / "odd/dangling").write_text("no link")
    (restored / "odd/fifo").unlink()
    (restored / "odd/fifo").symlink_to("elsewhere")
    (restored / "odd/hard-1").unlink()
    (restored / "odd/hard-1").write_text("alone")
    (restored / "odd/added").write_text("mine, too")
    result = given(vaulted, tmp_path / "again", overwrite=Overwrite.ALWAYS)
    assert (restored / "odd/added").read_text() == "mine, too"
    (restored / "odd/added").unlink()
    os.utime(restored / "odd", ns=(1, 1))
    assert differences(fingerprint(vaulted.source), fingerprint(restored)) == []
    assert result.replaced > 300
    assert not [name for name in everything(tmp_path / "again") if os.fsencode(name).find(TEMPORARY_PREFIX) >= 0]


def test_if_changed_writes_only_what_has_another_size_or_time(vaulted: Trip, restored: Path, tmp_path: Path) -> None:
    same = (restored / "folder 1/small-5").stat()
    (restored / "folder 1/small-6").write_text("changed")
    os.utime(restored / "folder 1/small-7", ns=(5, 5))
    result = given(vaulted, tmp_path / "again", overwrite=Overwrite.IF_CHANGED)
    assert (restored / "folder 1/small-5").stat().st_ino == same.st_ino
    assert differences(fingerprint(vaulted.source), fingerprint(restored)) == []
    assert (result.files, result.replaced) == (2, 2)


def test_if_newer_spares_what_was_changed_later(vaulted: Trip, restored: Path, tmp_path: Path) -> None:
    (restored / "empty").write_text("later")
    (restored / "folder 1/small-6").write_text("earlier")
    os.utime(restored / "folder 1/small-6", ns=(5, 5))
    result = given(vaulted, tmp_path / "again", overwrite=Overwrite.IF_NEWER)
    assert (restored / "empty").read_text() == "later"
    assert (restored / "folder 1/small-6").read_bytes() == (vaulted.source / "folder 1/small-6").read_bytes()
    assert result.replaced == 1


@pytest.mark.parametrize("rule", list(Overwrite))
def test_what_lies_outside_is_never_changed_through_links_that_are_there(
    vaulted: Trip, restored: Path, tmp_path: Path, rule: Overwrite
) -> None:
    """Links of both kinds lead out of the target before the restore; nothing is written through them."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("small-1", "small-2", "precious"):
        (outside / name).write_text(name)
        os.utime(outside / name, ns=(3, 3))
    (restored / "folder 1/small-1").unlink()
    (restored / "folder 1/small-1").hardlink_to(outside / "small-1")
    (restored / "folder 1/small-2").unlink()
    (restored / "folder 1/small-2").symlink_to(outside / "small-2")
    (restored / "odd").rename(tmp_path / "was odd")
    (restored / "odd").symlink_to(outside)
    inside = {path.name: (path.read_text(), path.stat().st_mtime_ns, path.stat().st_mode) for path in outside.iterdir()}
    given(vaulted, tmp_path / "again", overwrite=rule)
    after = {path.name: (path.read_text(), path.stat().st_mtime_ns, path.stat().st_mode) for path in outside.iterdir()}
    assert after == inside
    if rule is Overwrite.ALWAYS:
        assert differences(fingerprint(vaulted.source), fingerprint(restored)) == []
    if rule is Overwrite.NEVER:
        assert (restored / "odd").is_symlink()


def test_a_folder_with_something_in_it_is_not_removed_for_a_file(vaulted: Trip, restored: Path, tmp_path: Path) -> None:
    for name in ("empty", "odd/dangling", "folder 0/deep/random-0.bin"):
        (restored / name).unlink()
        (restored / name).mkdir()
    (restored / "empty/precious").write_text("precious")
    with pytest.raises(RestoreDiffers, match=r"1 entries could not be restored.*empty"):
        given(vaulted, tmp_path / "again", overwrite=Overwrite.ALWAYS)
    assert (restored / "empty/precious").read_text() == "precious"
    assert (restored / "odd/dangling").is_symlink()
    assert (restored / "folder 0/deep/random-0.bin").is_file()


def test_an_old_file_stays_whole_when_its_new_content_is_damaged(vaulted: Trip, restored: Path, tmp_path: Path) -> None:
    for file in vaulted.seal.data_packs:
        flip_middle(tmp_path / "vault" / file.name)
    before = fingerprint(restored)
    with pytest.raises(DataDamaged):
        given(vaulted, tmp_path / "again", overwrite=Overwrite.ALWAYS)
    assert differences(before, fingerprint(restored)) == []


def test_an_inherited_acl_is_not_added(vaulted: Trip, tmp_path: Path) -> None:
    target = tmp_path / "with acl"
    target.mkdir()
    subprocess.run([need("setfacl"), "-d", "-m", "u:1234:rwx", str(target)], check=True)
    given(vaulted, target)
    assert differences(fingerprint(vaulted.source), fingerprint(below(target, vaulted.source))) == []


# -- reading back, and only looking


def test_verify_reads_everything_back(vaulted: Trip, tmp_path: Path) -> None:
    result = given(vaulted, tmp_path / "out", verify=True)
    assert result.verified == result.files


@pytest.mark.parametrize("name", ["folder 1/small-5", "folder 0/deep/random-0.bin", "odd/dangling", "odd/hard-2"])
def test_verify_tells_what_is_not_what_was_stored(
    vaulted: Trip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Something changes a file between writing and reading back, as a bad disk does."""
    place = below(tmp_path / "out", vaulted.source) / name
    real = restoring._Restore.verify

    def tamper(self: restoring._Restore) -> None:
        if place.is_symlink():
            place.unlink()
            place.symlink_to("another")
        else:
            data = bytearray(place.read_bytes())
            data[len(data) // 2] ^= 1
            place.write_bytes(data)
        real(self)

    monkeypatch.setattr(restoring._Restore, "verify", tamper)
    with pytest.raises(RestoreDiffers, match=place.name.replace("-", ".")):
        given(vaulted, tmp_path / "out", verify=True)


def test_verify_leaves_out_what_was_kept(vaulted: Trip, restored: Path, tmp_path: Path) -> None:
    (restored / "empty").write_text("mine")
    (restored / "odd/suid").unlink()
    result = given(vaulted, tmp_path / "again", overwrite=Overwrite.NEVER, verify=True)
    assert (result.files, result.verified) == (1, 1)


@pytest.mark.parametrize("rule", [None, Overwrite.NEVER, Overwrite.IF_CHANGED, Overwrite.ALWAYS])
def test_a_dry_run_counts_what_the_run_then_does_and_writes_nothing(
    vaulted: Trip, tmp_path: Path, rule: Overwrite | None
) -> None:
    target = tmp_path / "out"
    if rule is not None:
        given(vaulted, target)
        place = below(target, vaulted.source)
        (place / "empty").write_text("mine")
        (place / "odd/suid").unlink()
        (place / "odd/hard-1").write_bytes(b"changed")
        (place / "folder 2/deep/random-2.bin").unlink()
        (place / "folder 2/deep").rename(tmp_path / "away")
        (place / "folder 2/deep").write_text("a file")
    before = fingerprint(tmp_path)
    planned = given(vaulted, target, overwrite=rule, dry_run=True)
    assert differences(before, fingerprint(tmp_path)) == []
    assert target.exists() is (rule is not None)
    done = given(vaulted, target, overwrite=rule)
    fields = ("files", "others", "bytes_restored", "replaced", "kept", "directories")
    assert [getattr(planned, name) for name in fields] == [getattr(done, name) for name in fields]


# -- how it is done


def test_directories_that_are_shared_by_workers_come_out_whole(
    vaulted: Trip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "_SHARED_BYTES", 1000)
    monkeypatch.setattr(filling, "_SLICE", 3)
    monkeypatch.setattr(filling, "_WINDOW_FILES", 2)
    result = given(vaulted, tmp_path / "out", verify=True)
    assert differences(fingerprint(vaulted.source), fingerprint(below(tmp_path / "out", vaulted.source))) == []
    assert result.verified == result.files


def test_threads_do_what_processes_do(vaulted: Trip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "hands", lambda _store, make: hands._Threads(3, make))
    given(vaulted, tmp_path / "out", verify=True)
    assert differences(fingerprint(vaulted.source), fingerprint(below(tmp_path / "out", vaulted.source))) == []


def test_long_files_are_written_window_by_window(
    vaulted: Trip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diskprep.vault.longfiles.WINDOW_FILES", 0)
    given(vaulted, tmp_path / "out")
    assert differences(fingerprint(vaulted.source), fingerprint(below(tmp_path / "out", vaulted.source))) == []


def test_a_worker_that_is_killed_ends_the_restore(
    vaulted: Trip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling.Filler, "_flush", lambda _self: os.kill(os.getpid(), 9))
    with pytest.raises(Exception, match="worker process"):
        given(vaulted, tmp_path / "out")


@pytest.mark.root
def test_ownership_and_capabilities_come_back_for_root(vaulted: Trip, tmp_path: Path) -> None:
    need_root()
    repository = Repository(vaulted.vault, vaulted.opened.key, vaulted.opened.id, vaulted.opened.polynomial)
    source = tmp_path / "owned"
    source.mkdir()
    (source / "file").write_text("text")
    os.chown(source / "file", 54321, 54322)
    os.setxattr(source / "file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.chown(source, 11, 12)
    backup(repository, [Source(os.fsencode(source))], hostname="here")
    given(vaulted, tmp_path / "out")
    back = below(tmp_path / "out", source)
    assert differences(fingerprint(source), fingerprint(back)) == []
    assert (back / "file").stat().st_uid == 54321
    assert open_repository(vaulted.vault, Secret(PASSPHRASE)).id == repository.id


@pytest.mark.root
def test_somebody_without_rights_restores_and_verifies_what_may_be_read(vaulted: Trip, tmp_path: Path) -> None:
    """Files whose mode lets nobody read them are made, and told; owners are not asked for."""
    place = tmp_path / "open to all"
    place.mkdir(mode=0o777)
    program = [
        sys.executable,
        "-m",
        "diskprep",
        "vault",
        "restore",
        str(place / "out"),
        "--verify",
        "--json",
        "--quiet",
    ]
    where = ["--vault", str(tmp_path / "vault"), "--passphrase-file", str(vaulted.password_file)]
    done = subprocess.run([*plain_user(), *program, *where], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert any("no rights: it may not be read back" in warning for warning in told["warnings"])
    assert told["verified"] == told["files"]
    content = {p.name: p.read_bytes() for p in below(place / "out", vaulted.source).rglob("small-*")}
    assert content == {p.name: p.read_bytes() for p in vaulted.source.rglob("small-*")}
