"""The first backup after ingestion repeats what the seed was staged with: nothing else comes in, and images are cut
alike."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from vaults import CHEAP, PASSPHRASE, contents

from diskprep.cli import ingesting
from diskprep.errors import DataDamaged, FormatTooNew
from diskprep.events import Event, Note
from diskprep.repository.repository import Repository, open_repository
from diskprep.secrets import Secret
from diskprep.seed import Staging
from diskprep.source import Source
from diskprep.source.selection import CACHEDIR_TAG, Pattern, Selection, Tag
from diskprep.staging import choices
from diskprep.staging.blocks import BlockRule
from diskprep.staging.stage import stage
from diskprep.staging.writer import BackupOptions, BackupResult
from diskprep.store.directory import DirectoryStore

IMAGE_BYTES = 9 << 20

ALL = Selection(
    exclude=(Pattern(text=b"*.tmp"), Pattern(text=b"not-utf8-\xff")),
    iexclude=(Pattern(text=b"*.BAK"),),
    tags=(Tag(name=b".nobackup", header=b"no"), CACHEDIR_TAG),
    larger_than_bytes=10 << 20,
    one_file_system=True,
)


@dataclass(slots=True, kw_only=True)
class Seeding:
    """A source, staged with some options, and its repository as a vault would hold it."""

    folder: Path
    events: list[Event]

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def staging(self) -> Staging:
        return Staging(self.folder / "staging")

    def stage(self, selection: Selection, block_rule: BlockRule | None = None) -> Repository:
        stage(
            self.staging,
            [Source(os.fsencode(self.source))],
            passphrase=Secret(PASSPHRASE),
            job_name="job-1",
            storage_account="account",
            container="import",
            subscription_id="00000000-0000-0000-0000-000000000000",
            resource_group="group",
            location="westeurope",
            hostname=socket.gethostname(),
            options=BackupOptions(selection=selection, block_rule=block_rule),
            cost=CHEAP,
        )
        shutil.copytree(self.staging.repository, self.folder / "vault")
        return open_repository(DirectoryStore(self.folder / "vault"), Secret(PASSPHRASE))

    def incremental(self, repository: Repository, options: BackupOptions | None = None) -> BackupResult | None:
        return ingesting.first_incremental(
            repository, self.staging, options=options or BackupOptions(), emit=self.events.append
        )

    def stored(self, repository: Repository, taken: BackupResult | None) -> set[str]:
        """The files of a recovery point, by their path below the source."""
        assert taken is not None
        inside = os.fsencode(self.source) + b"/"
        return {os.fsdecode(path.removeprefix(inside)) for path in contents(repository, taken.snapshot)}


@pytest.fixture
def seeding(tmp_path: Path) -> Seeding:
    source = tmp_path / "source"
    for name in ("kept", "one.tmp", "two.bak", "cache/inside", "cache/deep/inside", "tagged/inside"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (source / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"odd")
    (source / "cache/CACHEDIR.TAG").write_bytes(CACHEDIR_TAG.header)
    (source / "tagged/.nobackup").write_bytes(b"no more")
    with (source / "long").open("wb") as stream:
        stream.truncate((10 << 20) + 1)
    return Seeding(folder=tmp_path, events=[])


STAYS = {"kept", "cache/CACHEDIR.TAG", "tagged/.nobackup"}


def test_what_the_seed_left_out_is_left_out_again_without_a_word_of_it(seeding: Seeding) -> None:
    repository = seeding.stage(ALL)
    (seeding.source / "cache/new").write_bytes(b"new in the cache")
    (seeding.source / "NEW.Bak").write_bytes(b"new, in any case")
    (seeding.source / "new").write_bytes(b"new")
    taken = seeding.incremental(repository)
    assert seeding.stored(repository, taken) == STAYS | {"new"}
    told = [event.text for event in seeding.events if isinstance(event, Note)]
    assert (
        "as the seed was staged: --exclude-if-present .nobackup --exclude-caches --one-file-system "
        "--exclude-larger-than 10485760" in told
    )


@pytest.mark.root
def test_another_file_system_in_the_source_is_not_entered(seeding: Seeding) -> None:
    repository = seeding.stage(Selection(one_file_system=True))
    mounted = seeding.source / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mounted], check=True)
    try:
        (mounted / "not of this seed").write_bytes(b"another file system")
        taken = seeding.incremental(repository)
    finally:
        subprocess.run(["umount", mounted], check=True)
    found = seeding.stored(repository, taken)
    assert "kept" in found
    assert not any(name.startswith("mounted/") for name in found)


def test_images_are_cut_as_the_seed_cut_them(seeding: Seeding) -> None:
    image = seeding.source / "disk.img"
    image.write_bytes(os.urandom(IMAGE_BYTES))
    repository = seeding.stage(Selection(), BlockRule(block_bytes=256 << 10))
    with image.open("r+b") as stream:
        stream.seek(4 << 20)
        stream.write(b"a page that was overwritten")
    taken = seeding.incremental(repository)
    assert taken is not None
    assert [path for path, _ in taken.fixed_blocks] == [str(image)]
    assert 256 << 10 <= taken.bytes_added < 512 << 10


def test_what_is_given_to_ingest_wins(seeding: Seeding) -> None:
    (seeding.source / "disk.img").write_bytes(os.urandom(IMAGE_BYTES))
    repository = seeding.stage(ALL, BlockRule(block_bytes=256 << 10))
    given = Selection(
        exclude=(Pattern(text=b"!one.tmp"), Pattern(text=b"kept")), larger_than_bytes=20 << 20, one_file_system=True
    )
    options = BackupOptions(selection=given, block_rule=BlockRule(block_bytes=1 << 20))
    (seeding.source / "disk.img").touch()
    taken = seeding.incremental(repository, options)
    assert seeding.stored(repository, taken) == STAYS - {"kept"} | {"one.tmp", "long", "disk.img"}
    assert taken is not None
    assert ["1 MiB" in reason for _, reason in taken.fixed_blocks] == [True]


def test_patterns_that_are_given_once_more_stand_in_the_order_in_which_they_are_given(seeding: Seeding) -> None:
    patterns = (Pattern(text=b"*.tmp"), Pattern(text=b"!one.tmp"))
    repository = seeding.stage(Selection(exclude=patterns))
    taken = seeding.incremental(repository, BackupOptions(selection=Selection(exclude=patterns)))
    assert "one.tmp" in seeding.stored(repository, taken)


def test_a_staging_that_tells_nothing_works_as_before(seeding: Seeding) -> None:
    repository = seeding.stage(ALL)
    seeding.staging.choices_file.unlink()
    taken = seeding.incremental(repository)
    found = seeding.stored(repository, taken)
    assert "one.tmp" not in found  # as the seed's recovery point tells
    assert {"kept", "long", "cache/inside", "tagged/inside"} <= found


@pytest.mark.parametrize("how", ["damaged", "newer"])
def test_a_backup_of_more_than_was_asked_for_is_not_taken(seeding: Seeding, how: str) -> None:
    repository = seeding.stage(ALL)
    path = seeding.staging.choices_file
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        path.write_bytes(repository.key.seal(b'{"format": "diskprep-choices", "version": 2}'))
    with pytest.raises(DataDamaged if how == "damaged" else FormatTooNew):
        choices.load(seeding.staging, repository.key)
    assert seeding.incremental(repository) is None
    (told,) = [event.text for event in seeding.events if isinstance(event, Note)]
    assert told.startswith("no incremental backup was taken: ")
    assert len(repository.snapshots()) == 1


def test_choices_come_back_as_they_were_written_and_show_nobody_a_name(seeding: Seeding) -> None:
    repository = seeding.stage(ALL, BlockRule(block_bytes=64 << 10))
    found = choices.load(seeding.staging, repository.key)
    assert found is not None
    assert [p.text for p in found.selection.exclude] == [p.text for p in ALL.exclude]
    assert [p.text for p in found.selection.iexclude] == [p.text for p in ALL.iexclude]
    assert found.selection.tags == ALL.tags
    assert (found.selection.larger_than_bytes, found.selection.one_file_system) == (10 << 20, True)
    assert found.block_rule == BlockRule(block_bytes=64 << 10)
    assert b"tmp" not in seeding.staging.choices_file.read_bytes()
