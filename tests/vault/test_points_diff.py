"""`vault diff`: the changes that restic's diff tells, with their bytes."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from history import History, make_history
from support import diskprep, diskprep_json
from trip import flip_middle, restic

from diskprep.errors import NotFound, UsageError
from diskprep.repository.pack import object_name
from diskprep.source.source import public_path
from diskprep.vault.difference import Change, Changed, Difference, Summary

#: What restic does not tell: what was in a folder that became something else, and that nothing but content changed.
_LETTERS = {Change.CONTENT_ALONE: "M"}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Five points of two hosts; not to be changed."""
    return make_history(tmp_path_factory.mktemp("history"))


def compare(
    history: History, one: int, other: int, *, path: bytes = b"/", metadata: bool = False, exact: bool = False
) -> tuple[list[Changed], Summary]:
    repository = history.repository
    points = repository.snapshots()
    difference = Difference(repository, points[one], points[other], path=path, metadata=metadata, exact=exact)
    changes = list(difference.run())
    summary = difference.summary()
    assert summary.problems == ()
    return changes, summary


def lines(changes: list[Changed]) -> list[str]:
    return [
        f"{_LETTERS.get(changed.change, changed.change)} {public_path(changed.path)}{'/' * changed.is_directory}"
        for changed in changes
    ]


def theirs(history: History, one: int, other: int, *options: str) -> tuple[list[str], dict[str, dict[str, int]]]:
    ids = history.ids
    said = restic(history.vault, history.password_file, "diff", "--json", *options, ids[one], ids[other])
    documents = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    changes = [
        f"{document['modifier']} {document['path']}" for document in documents if document["message_type"] == "change"
    ]
    return changes, documents[-1]


PAIRS = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4), (4, 0), (2, 2)]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("metadata", [False, True])
def test_changes_are_those_that_restic_tells(history: History, pair: tuple[int, int], metadata: bool) -> None:
    wanted, _ = theirs(history, *pair, *(["--metadata"] if metadata else []))
    found = lines(compare(history, *pair, metadata=metadata)[0])
    assert sorted(found) == sorted(wanted)
    assert metadata or bool(found) is (pair not in {(2, 3), (2, 2)})


@pytest.mark.parametrize("pair", PAIRS)
def test_exact_amounts_are_those_that_restic_counts(history: History, pair: tuple[int, int]) -> None:
    _, wanted = theirs(history, *pair)
    summary = compare(history, *pair, exact=True)[1]
    assert summary.changed_files == wanted["changed_files"]
    for side, name in ((summary.added, "added"), (summary.removed, "removed")):
        assert {
            "files": side.files,
            "dirs": side.directories,
            "others": side.others,
            "data_blobs": side.data_blobs,
            "tree_blobs": side.tree_blobs,
            "bytes": side.plaintext_bytes,
        } == wanted[name]


def test_a_copy_of_an_unchanged_file_counts_unless_the_amounts_are_exact(history: History) -> None:
    near, exact = (compare(history, 0, 1, exact=exact)[1].added for exact in (False, True))
    assert near.plaintext_bytes - exact.plaintext_bytes == 700_000  # copied into a new folder
    assert near.stored_bytes > exact.stored_bytes > 300_000
    assert (near.files, near.directories) == (exact.files, exact.directories)


def test_changes_come_in_the_order_of_the_paths(history: History) -> None:
    changes, _ = compare(history, 0, 4)
    paths = [changed.path.split(b"/") for changed in changes]
    assert all(one <= other for one, other in pairwise(paths))


def test_both_ways_tell_the_same_with_added_and_removed_swapped(history: History) -> None:
    forth, back = compare(history, 0, 4)[1], compare(history, 4, 0)[1]
    assert (forth.added, forth.removed, forth.changed_files) == (back.removed, back.added, back.changed_files)


def test_a_path_bounds_what_is_compared(history: History) -> None:
    whole, _ = compare(history, 0, 4)
    folder = f"{history.source}/folder 1".encode()
    part, summary = compare(history, 0, 4, path=folder + b"/./")
    assert part == [changed for changed in whole if changed.path.startswith(folder + b"/")]
    assert summary.removed.files == 1
    (file,) = compare(history, 0, 4, path=folder + b"/small-1")[0]
    assert (file.change, file.path) == (Change.CONTENT, folder + b"/small-1")
    (new, *inside) = compare(history, 0, 4, path=f"{history.source}/new folder".encode())[0]
    assert (new.change, len(inside)) == (Change.ADDED, 2)


def test_a_path_that_neither_has_and_one_that_is_not_absolute_are_refused(history: History) -> None:
    with pytest.raises(NotFound):
        compare(history, 0, 1, path=b"/no/such/path")
    with pytest.raises(UsageError):
        compare(history, 0, 1, path=b"folder 1")


def test_what_was_in_a_folder_that_became_a_file_is_told(tmp_path: Path, history: History) -> None:
    password = tmp_path / "passphrase"
    password.write_bytes(history.password_file.read_bytes())
    source, vault = tmp_path / "source", tmp_path / "vault"
    (source / "thing/inner").mkdir(parents=True)
    (source / "thing/inner/file").write_bytes(b"inside")
    restic(vault, password, "init")
    restic(vault, password, "backup", source)
    (source / "thing/inner/file").unlink()
    (source / "thing/inner").rmdir()
    (source / "thing").rmdir()
    (source / "thing").write_bytes(b"now a file")
    restic(vault, password, "backup", source)
    options = ("--vault", vault, "--passphrase-file", password)
    first, second = (point["id"] for point in diskprep_json("vault", "list", "--fast", *options)["recovery_points"])
    found = diskprep_json("vault", "diff", first, second, *options)
    assert [(change["change"], Path(change["path"]).name) for change in found["changes"]] == [
        ("T", "thing"),
        ("-", "inner"),
        ("-", "file"),
    ]
    assert found["removed"]["files"] == 1
    assert found["removed"]["data_blobs"] == found["added"]["data_blobs"] == 1


def test_equal_directories_are_not_read(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = history.repository
    points = repository.snapshots()
    difference = Difference(repository, points[1], points[2])
    reads: list[bytes] = []
    read = difference._reader.read
    monkeypatch.setattr(difference._reader, "read", lambda tree, ahead=(): (reads.append(tree), read(tree, ahead))[1])
    list(difference.run())
    # The way to the source in both, the folder of the twins in both, and the new twin.
    assert len(reads) == 2 * (len(history.source.parts) + 1) + 1 + 2


def test_a_damaged_directory_is_told_and_nothing_seems_gone(history: History, tmp_path: Path) -> None:
    copy = history.copy(tmp_path)
    repository = copy.repository
    last = repository.snapshots()[-1].tree
    entry = next(e for e in repository.index.packs.values() if last in {blob.id for blob in e.blobs})
    flip_middle(copy.vault / object_name(entry.pack))
    options = ("--vault", copy.vault, "--passphrase-file", copy.password_file)
    out, err = diskprep("vault", "diff", copy.ids[0], "latest", *options, code=30)
    assert "could not be read" in err
    assert not re.search(r"^- ", out, re.MULTILINE)


def test_the_command_line_tells_changes_and_amounts(history: History) -> None:
    options = ("--vault", history.vault, "--passphrase-file", history.password_file)
    out, _ = diskprep("vault", "diff", history.ids[0][:8], history.ids[1][:8], *options)
    told = out.splitlines()
    assert f"+    {history.source}/new folder/" in told
    assert f"M    {history.source}/folder 1/small-1" in told
    assert f"T    {history.source}/folder 1/small-4" in told
    assert not any(line.startswith("U") for line in told)
    assert re.search(r"^files +3 +1 +1$", out, re.MULTILINE)
    document = diskprep_json("vault", "diff", history.ids[0], "latest", f"{history.source}/odd", *options, "--metadata")
    assert {change["change"] for change in document["changes"]} == {"U", "-"}
    assert document["removed"]["others"] == 1
