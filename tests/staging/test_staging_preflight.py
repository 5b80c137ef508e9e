"""Preflight: counted as find and du count, estimated near what restic stores, refused before the first byte."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from support import make_tree, need, need_root, plain_user
from support import run as call

from diskprep.cli import estimating
from diskprep.cli.estimating import Advice, Space, forecast, rate, space_at
from diskprep.disk import plan as plans
from diskprep.errors import NotFound, StorageFull, UsageError
from diskprep.seal import FileKind, Seal, SealedFile
from diskprep.source import Source
from diskprep.source.selection import CACHEDIR_TAG, Pattern, Selection
from diskprep.staging import preflight
from diskprep.staging.preflight import Estimate, Scan, estimate, scan

GB = 10**9
SIZES = {"low_bytes": 90 * GB, "likely_bytes": 101 * GB, "high_bytes": 112 * GB, "online_bytes": GB}
EXPECTED = Estimate(**SIZES, samples=500, sampled_bytes=1 << 26, unread=0)
WORDS = [
    bytes(random.Random(number).choices(b"abcdefghijklmnopqrstuvwxyz", k=2 + number % 9)) for number in range(9000)
]


def look(*paths: Path, selection: Selection | None = None) -> Scan:
    return scan([Source(os.fsencode(path)) for path in paths], selection=selection)


def text(rng: random.Random, length: int) -> bytes:
    words = rng.choices(WORDS, cum_weights=[number**0.4 for number in range(1, len(WORDS) + 1)], k=length // 6)
    return b" ".join(words)[:length]


def find(tree: Path) -> list[tuple[str, ...]]:
    """Type, device, inode, size and blocks of every entry, as find sees them."""
    told = call("find", tree, "-printf", r"%y %D %i %s %b\0")
    return [tuple(line.split(" ")) for line in told.split("\0") if line]


def test_a_tree_is_counted_as_find_counts_it(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    found, entries = look(tree), find(tree)
    files = [entry for entry in entries if entry[0] == "f"]
    distinct = {entry[1:] for entry in files}
    assert found.files == len(files)
    assert found.directories == sum(entry[0] == "d" for entry in entries)
    assert found.others == len(entries) - found.files - found.directories
    sizes = [int(entry[2]) for entry in distinct]
    assert found.size_bytes == sum(sizes)
    assert found.allocated_bytes == sum(int(entry[3]) for entry in distinct) * 512
    assert found.largest_bytes == max(sizes)
    small, long = [s for s in sizes if s <= 524288], [s for s in sizes if s > 524288]
    assert (found.small_files, found.small_bytes) == (len(small), sum(small))
    assert (found.long_files, found.long_bytes) == (len(long), sum(long))
    assert found.empty_files == sizes.count(0)
    assert found.unreadable == 0


@pytest.mark.parametrize("apparent", [True, False])
def test_bytes_are_those_of_du(tmp_path: Path, apparent: bool) -> None:
    tree = make_tree(tmp_path / "tree", megabytes=2)
    options = ("--apparent-size", "--block-size=1") if apparent else ("--block-size=1",)
    told = int(call("du", "-s", *options, tree).split()[0])
    others = [entry for entry in find(tree) if entry[0] != "f"]
    told -= sum(int(entry[3]) if apparent else int(entry[4]) * 512 for entry in others)
    found = look(tree)
    assert (found.size_bytes if apparent else found.allocated_bytes) == told


def test_a_tree_with_paths_longer_than_a_call_takes_is_counted_and_sampled(tmp_path: Path) -> None:
    rng, name, levels = random.Random(5), "d" * 200, 40
    (tmp_path / "deep").mkdir()
    descriptor = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=descriptor)
        deeper = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
        with os.fdopen(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor), "wb") as stream:
            stream.write(rng.randbytes(50_000))
    os.close(descriptor)
    found = look(tmp_path / "deep")
    assert (found.files, found.directories, found.unreadable) == (levels, levels + 1, 0)
    expected = estimate(found)
    assert expected.unread == 0
    assert expected.sampled_bytes == levels * 50_000
    assert levels * 50_000 < expected.likely_bytes < levels * 51_000


def test_what_a_filter_leaves_out_is_not_counted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("keep", "cache", "junk/inner"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "file").write_bytes(b"x" * 1000)
    (tree / "keep" / "big").write_bytes(b"x" * 5000)
    (tree / "cache" / "CACHEDIR.TAG").write_bytes(CACHEDIR_TAG.header)
    selection = Selection(exclude=(Pattern(text=b"junk"),), tags=(CACHEDIR_TAG,), larger_than_bytes=4000)
    found = look(tree, selection=selection)
    assert (found.files, found.directories, found.left_out) == (2, 3, 3)  # the tag itself stays
    assert found.size_bytes == 1000 + len(CACHEDIR_TAG.header)
    assert look(tree, selection=Selection(exclude=(Pattern(text=os.fsencode(tree)),))).files == 0
    named = scan([Source(os.fsencode(tree))], exclude={os.fsencode(tree / "keep"), os.fsencode(tree / "junk/inner")})
    assert (named.files, named.left_out) == (2, 2)
    inode = (tree / "keep").stat()
    assert scan([Source(os.fsencode(tree))], exclude_identities={(inode.st_dev, inode.st_ino)}).files == 3


def test_paths_of_a_snapshot_are_filtered_by_where_they_came_from(tmp_path: Path) -> None:
    (tmp_path / "snapshot" / "tmp").mkdir(parents=True)
    (tmp_path / "snapshot" / "tmp" / "file").write_bytes(b"x")
    source = Source(b"/data", read_from=os.fsencode(tmp_path / "snapshot"))
    assert scan([source], selection=Selection(exclude=(Pattern(text=b"/data/tmp"),))).files == 0
    assert scan([source], selection=Selection(exclude=(Pattern(text=b"/snapshot/tmp"),))).files == 1


def test_a_directory_that_may_not_be_read_is_counted_and_the_rest_is_scanned(tmp_path: Path) -> None:
    prefix = plain_user()
    for name in ("open", "closed", "odd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(random.Random(name).randbytes(9000))
    (tmp_path / "closed").chmod(0)
    (tmp_path / "odd" / "file").chmod(0)
    code = (
        "import sys; from diskprep.staging.preflight import *; from diskprep.source import Source\n"
        "found = scan([Source(sys.argv[1].encode())]); expected = estimate(found)\n"
        "print(found.files, found.directories, found.unreadable, expected.unread > 0, expected.likely_bytes > 18000)"
    )
    try:
        done = subprocess.run(
            [*prefix, sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
        )
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert done.stdout.split() == ["2", "3", "1", "True", "True"]


def test_sources_may_be_files_and_symlinks_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 700)
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    found = look(tmp_path / "file", tmp_path / "link", tmp_path / "fifo")
    assert (found.files, found.directories, found.others, found.size_bytes) == (1, 0, 2, 700)
    assert estimate(found).sampled_bytes == 700
    with pytest.raises(NotFound, match="gone"):
        look(tmp_path / "gone")


def test_what_vanishes_while_it_is_scanned_is_not_an_error(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")

    class Thief(Selection):
        def leaves_out(self, path: bytes) -> bool:
            if path.endswith(b"/b"):
                (tmp_path / "b" / "file").unlink()
                (tmp_path / "b").rmdir()
            return False

    found = look(tmp_path, selection=Thief(exclude=(Pattern(text=b"nothing"),)))
    assert (found.files, found.unreadable) == (2, 0)


def _text(tree: Path, rng: random.Random) -> None:
    for number in range(24):
        (tree / f"log-{number}").write_bytes(text(rng, rng.randrange(1 << 18, 3 << 19)))


def _random(tree: Path, rng: random.Random) -> None:
    for number in range(24):
        (tree / f"film-{number}").write_bytes(rng.randbytes(rng.randrange(1 << 18, 3 << 20)))


def _mix(tree: Path, rng: random.Random) -> None:
    for number in range(150):
        make = text if number % 3 else (lambda rng, length: rng.randbytes(length))
        (tree / f"file-{number}").write_bytes(make(rng, int(2 ** rng.uniform(10, 20.5))))
    (tree / "dump").write_bytes(text(rng, 6 << 20))


def _tiny(tree: Path, rng: random.Random) -> None:
    for number in range(6000):
        folder = tree / str(number % 60)
        folder.mkdir(exist_ok=True)
        (folder / f"note {rng.randrange(10**9)}.txt").write_bytes(text(rng, rng.randrange(2000)))


def _sparse(tree: Path, rng: random.Random) -> None:
    with (tree / "image").open("wb") as stream:
        stream.truncate(300 << 20)
        for number in range(24):
            stream.seek(number * 12 << 20)
            stream.write(text(rng, 1 << 20) if number % 2 else rng.randbytes(1 << 20))
    (tree / "text").write_bytes(text(rng, 4 << 20))


@pytest.mark.parametrize(
    "fill", [_mix, _tiny, *(pytest.param(fill, marks=pytest.mark.slow) for fill in (_text, _random, _sparse))]
)
def test_the_estimate_is_near_what_restic_stores(tmp_path: Path, fill: Callable[[Path, random.Random], None]) -> None:
    restic, tree, repository = need("restic"), tmp_path / "tree", tmp_path / "repository"
    tree.mkdir()
    fill(tree, random.Random(11))
    options = ("--no-cache", "--quiet", "-r", repository)
    for words in (("init", "--repository-version", "2"), ("backup", tree)):
        call(restic, *words, *options, env={"RESTIC_PASSWORD": "correct horse battery staple"})
    stored = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    expected = estimate(look(tree))
    assert abs(expected.likely_bytes / stored - 1) < 0.15, (expected, stored)
    assert expected.low_bytes * 0.95 < stored < expected.high_bytes * 1.05
    assert expected.low_bytes <= expected.likely_bytes <= expected.high_bytes


def test_the_same_tree_gives_the_same_estimate(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    first = estimate(look(tree))
    call("cp", "-a", tree, tmp_path / "copy")  # directories list their entries in another order
    assert estimate(look(tree)) == first
    assert estimate(look(tmp_path / "copy")) == first


def test_the_interval_holds_what_a_larger_sample_finds(tmp_path: Path) -> None:
    rng, hits = random.Random(3), 0
    for number in range(20):
        tree = tmp_path / str(number)
        tree.mkdir()
        for file in range(30):
            (tree / str(file)).write_bytes(rng.randbytes(1 << 19) if rng.random() < 0.5 else bytes(1 << 19))
        found = look(tree)
        few = replace(found, samples=found.samples[:: len(found.samples) // 12])
        part, whole = estimate(few), estimate(found)
        hits += part.low_bytes <= whole.likely_bytes <= part.high_bytes
    assert hits >= 17


def test_an_empty_source_takes_next_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    nothing = look(tmp_path / "tree")
    assert (nothing.files, nothing.directories, nothing.samples) == (0, 1, ())
    (tmp_path / "tree" / "empty").write_bytes(b"")
    one = look(tmp_path / "tree")
    assert (one.files, one.empty_files, one.samples) == (1, 1, ())
    for found in (nothing, one):
        expected = estimate(found)
        assert 0 < expected.low_bytes <= expected.likely_bytes <= expected.high_bytes < 10_000
        assert forecast(expected, staging=Space(where="/s", device=1, free_bytes=GB), disk_bytes=4 * GB).disks == 0


def test_a_file_of_holes_is_quick_and_takes_what_is_not_a_hole(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as stream:
        stream.truncate(100 * GB)
        for number in range(40):
            stream.seek(number * 2 * GB)
            stream.write(random.Random(number).randbytes(1 << 18))
    before = os.times()
    found = look(tmp_path)
    expected = estimate(found)
    after = os.times()
    assert found.size_bytes == 100 * GB
    assert (40 << 18) * 0.98 < expected.likely_bytes < (40 << 18) * 1.1
    assert (after.user + after.system) - (before.user + before.system) < 2
    os.truncate(tmp_path / "image", 0)
    os.truncate(tmp_path / "image", 100 * GB)
    assert estimate(look(tmp_path)).likely_bytes < 1 << 20


def test_a_file_system_that_tells_no_blocks_is_no_hole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(random.Random(1).randbytes(6 << 20))
    found = look(tmp_path)
    samples = tuple(sample._replace(weight_bytes=6 << 10, point=sample.point >> 10) for sample in found.samples)
    expected = estimate(replace(found, data_bytes=6 << 10, samples=samples))
    assert 6 << 20 < expected.likely_bytes < 6.1 * (1 << 20)


def test_files_that_vanished_or_became_something_else_are_passed_over(tmp_path: Path) -> None:
    rng = random.Random(2)
    for number in range(40):
        (tmp_path / str(number)).write_bytes(rng.randbytes(30_000))
    found = look(tmp_path)
    for name in ("0", "1", "2"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "1")
    (tmp_path / "2").symlink_to("3")
    os.truncate(tmp_path / "4", 0)
    expected = estimate(found)
    assert expected.unread > 0
    assert 40 * 28_000 < expected.likely_bytes < 40 * 31_000
    for path in tmp_path.iterdir():
        path.unlink()
    unknown = estimate(found)
    assert (unknown.samples, unknown.low_bytes < 50_000, unknown.likely_bytes > 1_200_000) == (0, True, True)


def test_reading_that_is_slow_is_cut_short(tmp_path: Path) -> None:
    rng = random.Random(2)
    for number in range(400):
        (tmp_path / str(number)).write_bytes(rng.randbytes(3000) if number % 2 else text(rng, 3000))
    found = look(tmp_path)
    whole, cut = estimate(found), estimate(found, limit_s=0)
    assert cut.samples == 1 < whole.samples
    assert cut.high_bytes - cut.low_bytes > whole.high_bytes - whole.low_bytes


def test_access_times_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    os.utime(tmp_path / "file", (1, 1))
    before = (tmp_path / "file").stat().st_atime_ns
    assert estimate(look(tmp_path)).sampled_bytes == 10_000
    assert (tmp_path / "file").stat().st_atime_ns == before


def test_no_more_is_compressed_than_a_part_of_a_large_source(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as stream:
        for _ in range(288):
            stream.write(os.urandom(1 << 20))
    expected = estimate(look(tmp_path))
    assert 7 << 20 < expected.sampled_bytes <= 9 << 20
    assert 288 << 20 < expected.likely_bytes < 289 << 20


def test_points_lie_evenly_however_long_the_stream_is() -> None:
    for files in (1, 10, 5000, 60_000):
        sampler = preflight._Sampler()
        for number in range(files):
            sampler.take((b"", b"", b"%d" % number), 1 << 14, number << 14, 1 << 14)
        numbers = [int(point.name) for point in sampler.points]
        assert len(numbers) < 1536
        assert len(numbers) >= min(768, files * 32)
        middle = sum(number < files / 2 for number in numbers) / len(numbers)
        assert files == 1 or abs(middle - 0.5) < 0.02


def room(free_bytes: int, where: str = "/staging", device: int = 1) -> Space:
    return Space(where=where, device=device, free_bytes=free_bytes)


def test_a_staging_without_room_is_refused_with_what_it_needs_and_has() -> None:
    with pytest.raises(StorageFull) as caught:
        forecast(EXPECTED, staging=room(101 * GB))  # the reserve is what lacks
    assert caught.value.exit_code == 4
    assert "/staging needs 103.037 GB free and has 101.000 GB" in caught.value.message
    assert "101.000 GB (90.000 to 112.000 GB)" in caught.value.message
    assert "--allow-tight" in caught.value.hint
    assert forecast(EXPECTED, staging=room(104 * GB)).needs[0].tight is False


def test_a_tight_staging_is_allowed_when_it_is_asked_for() -> None:
    made = forecast(EXPECTED, staging=room(GB), allow_tight=True)
    assert made.needs[0].tight
    assert any("tight" in line for line in estimating.lines(made))


def test_what_an_earlier_run_staged_counts() -> None:
    made = forecast(EXPECTED, staging=room(22 * GB), staged_bytes=80 * GB)
    assert made.needs[0].need_bytes < 22 * GB
    with pytest.raises(StorageFull, match=r"80\.000 GB of it are there"):
        forecast(EXPECTED, staging=room(20 * GB), staged_bytes=80 * GB)
    assert forecast(EXPECTED, staging=room(0), staged_bytes=120 * GB).needs[0].need_bytes == 0


def test_a_scratch_folder_has_room_of_its_own_or_shares_it() -> None:
    staging = room(105 * GB)
    with pytest.raises(StorageFull, match=r"/scratch needs 10\.217 GB free and has 9\.000 GB") as caught:
        forecast(EXPECTED, staging=staging, scratch=room(9 * GB, "/scratch", 2), scratch_bytes=10 * GB)
    assert "/staging needs" not in caught.value.message
    with pytest.raises(StorageFull, match=r"/staging with /tmp needs 113\.2"):
        forecast(EXPECTED, staging=staging, scratch=room(105 * GB, "/tmp", 1), scratch_bytes=10 * GB)
    assert len(forecast(EXPECTED, staging=staging, scratch=room(11 * GB, "/s", 2), scratch_bytes=10 * GB).needs) == 2


def test_disks_are_counted_as_the_plan_fills_them() -> None:
    size = 20 * GB
    made = forecast(EXPECTED, staging=room(200 * GB), disk_bytes=size)
    packs = [
        SealedFile(name=f"data/00/{number:064x}", kind=FileKind.DATA, size_bytes=16 << 20, sha256=f"{number:064x}")
        for number in range(100 * GB // (16 << 20))
    ]
    seal = Seal(job_name="job", repository_id="0" * 64, snapshot="0" * 64, created="", files=tuple(packs))
    offers = [plans.Offer(serial=str(number), size_bytes=size) for number in range(9)]
    assert made.disks == len(plans.make_plan(seal, offers).disks) == 6
    assert (made.disks_high, made.jobs) == (6, 1)
    assert forecast(EXPECTED, staging=room(200 * GB), disk_bytes=5 * GB).jobs == 3
    with pytest.raises(UsageError, match="smaller than 96 MiB"):
        forecast(EXPECTED, staging=room(200 * GB), disk_bytes=90 << 20)


@pytest.mark.parametrize(
    ("megabits", "advice"), [(0.5, Advice.SHIP), (0.8, Advice.EITHER), (2, Advice.UPLOAD), (None, Advice.UNKNOWN)]
)
def test_the_advice_follows_the_hours(megabits: float | None, advice: Advice) -> None:
    upload = None if megabits is None else megabits * 125_000
    made = forecast(EXPECTED, staging=room(200 * GB), upload_rate=upload, disk_rate=100e6)
    assert made.fill_hours == pytest.approx(2 * 100e9 / 100e6 / 3600)
    best, worst = made.journey_days
    assert (best, worst) == (pytest.approx(9 + 2000 / 86400), pytest.approx(15 + 2000 / 86400))
    assert EXPECTED.likely_bytes / made.even_rate / 86400 == pytest.approx((best + worst) / 2)
    assert made.upload_hours == (None if upload is None else pytest.approx(101e9 / upload / 3600))
    assert made.advice is advice


@pytest.mark.root
def test_a_file_system_that_is_too_small_is_refused_by_what_it_says_itself(tmp_path: Path) -> None:
    need_root()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "film").write_bytes(os.urandom(40 << 20))
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    call("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", mounted)
    try:
        space = space_at(mounted / "not yet" / "made")
        assert space.free_bytes == 48 << 20
        assert space.device == mounted.stat().st_dev != space_at(tmp_path).device
        expected = estimate(look(tmp_path / "tree"))
        with pytest.raises(StorageFull, match=r"needs 0\.060 GB free and has 0\.050 GB"):
            forecast(expected, staging=space)
        call("mount", "-o", "remount,size=64m", mounted)
        assert not forecast(expected, staging=space_at(mounted)).needs[0].tight
    finally:
        call("umount", mounted)


RATES = {"100Mbit": 12.5e6, "1Gbit/s": 125e6, "1.5 gbit": 187.5e6, "50Mbps": 6.25e6, "8kBit": 1000, "64Kibit": 8192}
RATES |= {"12MB": 12e6, "12MB/s": 12e6, "12MBps": 12e6, "10MiB/s": 10 << 20, "2B": 2}


@pytest.mark.parametrize(("given", "bytes_a_second"), RATES.items())
def test_a_rate_is_in_bits_or_in_bytes_as_it_says(given: str, bytes_a_second: float) -> None:
    assert rate(given) == pytest.approx(bytes_a_second)


@pytest.mark.parametrize("given", ["", "fast", "100", "12M", "12Mb", "-1MB", "0MB", "1e3MB", "12MB/h", "1 2MB"])
def test_what_is_no_rate_or_may_mean_two_is_refused(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        rate(given)
    assert caught.value.hint


def test_the_options_are_parsed_where_they_are_given() -> None:
    application, got = typer.Typer(), []

    @application.command()
    def command(
        allow_tight: estimating.AllowTight = False,
        disk_size: estimating.DiskSize = None,
        disk_rate: estimating.DiskRate = None,
        upload_rate: estimating.UploadRate = None,
        scratch: estimating.Scratch = None,
    ) -> None:
        got.append((allow_tight, disk_size, disk_rate, upload_rate, scratch))

    program = typer.main.get_command(application)
    for arguments in ("", "--allow-tight --disk-size=4TB --disk-rate=150MB --upload-rate=1Gbit/s --scratch=/x"):
        program.main(arguments.split(), standalone_mode=False)
    assert got == [(False, None, None, None, None), (True, 4 * 10**12, 150e6, 125e6, Path("/x"))]
    with pytest.raises(UsageError, match="no rate"):
        program.main(["--upload-rate", "0MB"], standalone_mode=False)


def test_people_are_told_the_reasons_in_numbers() -> None:
    made = forecast(EXPECTED, staging=room(200 * GB), disk_bytes=4000 * GB, upload_rate=12.5e6)
    told = estimating.lines(made)
    assert told == [
        "staged: likely 101.0 GB, 90.0 GB to 112.0 GB; less when files repeat each other",
        "/staging: needs 103.0 GB, 200.0 GB free",
        "disks: 1 of 4.00 TB",
        "shipping: 9.02 to 15 days: 22 minutes to fill and read back at 150.0 MB/s, 2 to 5 days on the way, "
        "7 to 10 days to import",
        "uploading: 2.2 hours at 100 Mbit/s",
        "advice: upload; it is over before the fastest journey; both are equally fast at 778 kbit/s",
    ]
    unknown = estimating.lines(forecast(EXPECTED, staging=room(200 * GB)))
    assert unknown[-1] == "uploading: as fast as shipping at 778 kbit/s"
    many = estimating.lines(forecast(EXPECTED, staging=room(200 * GB), disk_bytes=5 * GB))
    assert "disks: 21 of 5.0 GB, 23 if it comes to the most; that takes 3 import jobs" in many


def test_scripts_get_one_document(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    found = look(tmp_path)
    made = forecast(EXPECTED, staging=room(200 * GB), disk_bytes=4000 * GB, upload_rate=12.5e6)
    document = json.loads(json.dumps(estimating.document(made, found)))
    assert document["estimate"]["likely_bytes"] == 101 * GB
    needs = {"place": "/staging", "need_bytes": 103_036_777_216, "free_bytes": 200 * GB, "tight": False}
    assert document["needs"] == [needs]
    assert (document["advice"], document["disks"], document["deduplication"]) == ("upload", 1, "not estimated")
    assert document["source"]["files"] == 1
    assert "samples" not in document["source"]
