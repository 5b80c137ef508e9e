"""A mounted vault is what the source was, file by file, ends cleanly, and harms nobody."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import diskprep, need, need_root, run
from trip import Seeded, Trip, below, flip_middle, overwrite, restic

from diskprep.compare import differences, fingerprint
from diskprep.errors import ToolMissing
from diskprep.vault import mount as mounting

pytestmark = pytest.mark.root

_FACTS = "%P %y %m %U %G %s %l\\n"
_SPECIAL_BITS = re.compile(r"(?m)^(.* \w )\d(?=\d{3} \d+ \d+ \d)")  # set-id and sticky, which restic's mount leaves out


@pytest.fixture(autouse=True)
def _fuse() -> None:
    need_root()
    need("fusermount3")
    if not Path("/dev/fuse").exists():
        pytest.skip("this computer has no FUSE")


class Mounted:
    """A mount in another process."""

    def __init__(self, repository: Path, password_file: Path, point: Path, *options: str) -> None:
        point.mkdir(exist_ok=True)
        self.point = point
        command = ["vault", "mount", point, "--vault", repository, "--passphrase-file", password_file, *options]
        self._said = point.with_name(f"{point.name}.said")
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "diskprep", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        until = time.monotonic() + 60
        while "are shown in" not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.02)

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def latest(self) -> Path:
        return self.point / "snapshots/latest"

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def mounted(repository: Path, password_file: Path, point: Path, *options: str) -> Iterator[Mounted]:
    mount = Mounted(repository, password_file, point, *options)
    try:
        yield mount
    finally:
        if mount.process.poll() is None:
            mount.end()
        if is_mounted(point):
            run("umount", "-l", point)


def outcome(path: Path) -> bytes | int | None:
    """What is in a file, or the number of the error."""
    try:
        return path.read_bytes()
    except OSError as error:
        return error.errno


def is_mounted(point: Path) -> bool:
    return f" {point} " in Path("/proc/self/mountinfo").read_text()


def locks(repository: Path) -> list[Path]:
    return list((repository / "locks").iterdir())


@pytest.fixture(scope="module")
def shown(restic_seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount that many tests look at."""
    need_root()
    folder = tmp_path_factory.mktemp("shown")
    shutil.copytree(restic_seeded.staging.repository, folder / "repository")
    with mounted(folder / "repository", restic_seeded.password_file, folder / "point") as mount:
        yield mount


def test_a_mounted_point_is_the_source(shown: Mounted, restic_seeded: Seeded) -> None:
    there = below(shown.latest.resolve(), restic_seeded.source)
    assert differences(fingerprint(restic_seeded.source), fingerprint(there)) == []


def test_reading_in_parallel_gives_what_reading_in_turn_gives(shown: Mounted, restic_seeded: Seeded) -> None:
    paths = sorted(path for path in restic_seeded.source.rglob("*.bin") if path.is_file())
    there = [below(shown.latest, path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(Path.read_bytes, there * 2))
    assert read == [path.read_bytes() for path in paths] * 2
    with (there[0]).open("rb") as stream:
        stream.seek(-1000, os.SEEK_END)
        assert stream.read() == paths[0].read_bytes()[-1000:]


def test_links_devices_and_attributes_are_shown(shown: Mounted, restic_seeded: Seeded) -> None:
    odd = below(shown.latest, restic_seeded.source) / "odd"
    one, other = (odd / "hard-1").stat(), (odd / "hard-2").stat()
    assert (one.st_ino, one.st_nlink, one.st_mtime_ns) == (other.st_ino, 2, -1_500_000_001)
    again = next((shown.point / "ids").iterdir())
    assert (below(again, restic_seeded.source) / "odd/hard-1").stat().st_ino != one.st_ino
    assert (odd / "to folder").readlink() == Path("../folder 0")
    assert (odd / "fifo").is_fifo()
    assert (odd / "suid").stat().st_mtime_ns == 4_102_444_800_123_456_789
    if "user.note" in os.listxattr(restic_seeded.source / "odd/suid"):
        assert os.getxattr(odd / "suid", "user.note") == b"\x00value"
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(odd / "hard-1", "user.note")


def test_the_layout_and_its_facts_are_those_of_restics_mount(
    shown: Mounted, restic_seeded: Seeded, tmp_path: Path
) -> None:
    theirs = tmp_path / "restic"
    theirs.mkdir()
    options = ("--password-file", restic_seeded.password_file, "--no-lock", "--cache-dir", tmp_path / "cache")
    server = subprocess.Popen(
        [need("restic"), "-r", restic_seeded.staging.repository, *options, "mount", theirs],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while not is_mounted(theirs):
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        said = (run("find", place, "-printf", _FACTS) for place in (shown.point, theirs))
        ours, facts = (sorted(_SPECIAL_BITS.sub(r"\1", text).splitlines()) for text in said)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        if is_mounted(theirs):
            run("umount", "-l", theirs)
    assert ours == facts
    assert len(facts) > 1000


def test_nothing_can_be_written(shown: Mounted) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (shown.point / "new").touch()
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        next((shown.point / "ids").iterdir()).rmdir()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None])
def test_it_ends_cleanly(trip: Trip, how: signal.Signals | None) -> None:
    with mounted(trip.staging.repository, trip.password_file, trip.folder / "point") as mount:
        assert len(locks(trip.staging.repository)) == 1
        if how is None:
            run("umount", mount.point)
            assert mount.process.wait(30) == 0
        else:
            assert mount.end(how) == 0
        assert not is_mounted(mount.point)
        assert locks(trip.staging.repository) == []
        assert "cannot" not in mount.said


def test_it_ends_although_somebody_reads(trip: Trip) -> None:
    with mounted(trip.staging.repository, trip.password_file, trip.folder / "point") as mount:
        name = next(path for path in trip.source.rglob("*.bin"))
        descriptor = os.open(below(mount.latest, name), os.O_RDONLY)
        assert os.read(descriptor, 10) == name.read_bytes()[:10]
        assert mount.end() == 0
        assert not is_mounted(mount.point)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.pread(descriptor, 1000, 600_000)
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_a_stale_mount_is_told(trip: Trip) -> None:
    with mounted(trip.staging.repository, trip.password_file, trip.folder / "point") as mount:
        mount.end(signal.SIGKILL)
        arguments = ("--vault", trip.staging.repository, "--passphrase-file", trip.password_file)
        said = diskprep("vault", "mount", mount.point, *arguments, code=5)[1]
        assert "stale mount" in said
        assert f"umount {mount.point}" in said


def test_while_it_is_mounted_nobody_prunes_and_backups_go_on(trip: Trip) -> None:
    repository = trip.staging.repository
    with mounted(repository, trip.password_file, trip.folder / "point"):
        assert "locked" in restic(repository, trip.password_file, "prune", ok=False)
        restic(repository, trip.password_file, "backup", trip.source / "empty")
    with mounted(repository, trip.password_file, trip.folder / "point", "--no-lock"):
        assert locks(repository) == []


def test_damage_is_an_error_of_that_file_alone(trip: Trip) -> None:
    packs = [trip.staging.repository / file.name for file in trip.seal.data_packs]
    flip_middle(packs[0])
    overwrite(packs[1], b"")
    packs[2].unlink()
    with mounted(trip.staging.repository, trip.password_file, trip.folder / "point") as mount:
        read = [(path, outcome(below(mount.latest, path))) for path in trip.source.rglob("*") if path.is_file()]
        failed = [path for path, content in read if content == errno.EIO]
        assert [path for path, content in read if content not in (errno.EIO, path.read_bytes())] == []
        assert 3 <= len(failed) < len(read) - 10
        assert any(pack.name in mount.said for pack in packs[:3])
        assert "Traceback" not in mount.said


def test_before_any_data_is_there_everything_is_listed(trip: Trip) -> None:
    want = sorted(run("find", trip.source, "-not", "-name", "socket", "-printf", _FACTS).splitlines())
    for file in trip.seal.data_packs:
        (trip.staging.repository / file.name).unlink()
    with mounted(trip.staging.repository, trip.password_file, trip.folder / "point") as mount:
        there = below(mount.latest.resolve(), trip.source)
        have = sorted(run("find", there, "-printf", _FACTS).splitlines())
        assert [line for line in have if " d " not in line] == [line for line in want if " d " not in line]
        assert len(have) == len(want)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_others_look_only_where_they_may(trip: Trip, public: Path) -> None:
    plain = (need("setpriv"), "--reuid=1234", "--regid=1234", "--clear-groups")
    source = public / "source"
    source.mkdir()
    (source / "open").write_text("to all")
    (source / "closed").write_text("to one")
    (source / "closed").chmod(0o600)
    restic(trip.staging.repository, trip.password_file, "backup", source)

    def reads(name: str, *options: str) -> bool:
        with mounted(trip.staging.repository, trip.password_file, public / "point", *options) as mount:
            path = below(mount.latest.resolve(), source) / name
            return subprocess.run([*plain, "cat", path], capture_output=True, check=False).returncode == 0

    assert not reads("open")
    assert reads("open", "--allow-other")
    assert not reads("closed", "--allow-other")
    assert reads("closed", "--allow-other", "--no-default-permissions")


def test_a_folder_that_does_not_suit_is_refused(trip: Trip) -> None:
    arguments = ("--vault", trip.staging.repository, "--passphrase-file", trip.password_file)
    assert "not a directory" in diskprep("vault", "mount", trip.folder / "absent", *arguments, code=2)[1]
    assert "not empty" in diskprep("vault", "mount", trip.source, *arguments, code=2)[1]
    inside = trip.staging.repository / "data/zz"
    inside.mkdir()
    assert "inside the vault" in diskprep("vault", "mount", inside, *arguments, code=2)[1]


def test_without_libfuse_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSE_LIBRARY_PATH", str(tmp_path / "absent.so"))
    for module in ("mfusepy", "diskprep.vault.fuse"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ToolMissing) as told:
        mounting.load_bridge()
    assert "apt-get install" in told.value.hint
    assert os.environ["FUSE_LIBRARY_PATH"] == str(tmp_path / "absent.so")
