"""`diskprep stage` refuses with the exit code, the message and the hint of each case, and writes over nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from staged import PASSPHRASE, Place, tree
from support import make_tree, need_root, run

from diskprep.repository.repository import open_repository
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("little") / "source", megabytes=1)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, tmp_path / "staging")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Place:
    """Not to be changed."""
    base = tmp_path_factory.mktemp("sealed")
    place = Place(base, base / "staging")
    place.stage(source)
    return place


@pytest.fixture
def unsealed(sealed: Place, tmp_path: Path) -> Place:
    """A staging that lacks nothing but the seal, as after a run that was cut off at the very end."""
    place = Place(tmp_path, tmp_path / "staging")
    shutil.copytree(sealed.root, place.root, symlinks=True)
    (place.root / "seal.json").unlink()
    return place


def content(root: Path) -> dict[str, str]:
    """Digest of every file below."""
    found = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def spoil(path: Path, offset: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_source_that_is_not_there(place: Place, source: Path, tmp_path: Path) -> None:
    told = place.stage(source, tmp_path / "absent", code=10).err
    assert f"{tmp_path}/absent" in told
    assert "No such file or directory" in told
    assert not place.root.exists()


def test_a_source_inside_another(place: Place, source: Path) -> None:
    told = place.stage(source, source / "odd", code=2).err
    assert "lies inside the source" in told
    assert "name the outer one only" in told
    assert not place.root.exists()


def test_a_staging_inside_its_source_is_left_out_and_that_is_told(tmp_path: Path, source: Path) -> None:
    shutil.copytree(source / "folder 0", tmp_path / "source")
    place = Place(tmp_path, tmp_path / "source/deep/staging")
    before = tree(tmp_path / "source")
    done = place.stage(tmp_path / "source")
    assert f"{place.root} is left out: the backup is written there" in done.err
    listed = place.restic("ls", "latest")
    assert str(place.root) not in listed
    assert f"{tmp_path}/source/deep/random-0.bin" in listed
    after = tree(tmp_path / "source")
    assert {path: after[path] for path in before if path not in (b".", b"deep/.")}.items() <= before.items()


@pytest.mark.parametrize("inner", ["", "photos/2026", "link"])
def test_a_source_inside_the_staging(place: Place, inner: str) -> None:
    (place.root / "photos/2026").mkdir(parents=True)
    (place.root / "photos/2026/one").write_bytes(b"precious")
    (place.base / "elsewhere").symlink_to(place.root)
    before = tree(place.root)
    source = place.base / "elsewhere/photos" if inner == "link" else place.root / inner
    told = place.stage(source, code=2).err
    assert f"the source {source} lies inside the staging" in told
    assert "a folder of its own" in told
    assert tree(place.root) == before


@pytest.mark.parametrize("where", ["repository", "repository/data/00"])
def test_a_source_inside_the_repository(unsealed: Place, where: str) -> None:
    before = content(unsealed.root)
    assert "lies inside the staging" in unsealed.stage(unsealed.root / where, code=2).err
    assert content(unsealed.root) == before


def test_a_wrong_passphrase(unsealed: Place, source: Path) -> None:
    before = content(unsealed.root)
    Path(unsealed.secret[1]).write_text("another passphrase, also long enough\n")
    told = unsealed.stage(source, code=12).err
    assert "no key of the repository" in told
    assert "a passphrase cannot be recovered" in told
    assert content(unsealed.root) == before


def test_a_repository_of_a_newer_version(unsealed: Place, source: Path) -> None:
    config = unsealed.repository / "config"
    repository = open_repository(DirectoryStore(unsealed.repository), Secret(PASSPHRASE))
    document = json.loads(repository.key.open(config.read_bytes())) | {"version": 3}
    config.chmod(0o600)
    config.write_bytes(repository.key.seal(json.dumps(document).encode()))
    before = content(unsealed.root)
    assert "format 3; this diskprep knows 2" in unsealed.stage(source, code=13).err
    assert content(unsealed.root) == before


def test_a_seed_of_a_newer_version(unsealed: Place, source: Path) -> None:
    seed = unsealed.root / "seed.json"
    text = json.loads(seed.read_text())
    seed.write_text(json.dumps(text | {"version": text["version"] + 1}))
    before = content(unsealed.root)
    assert "seed.json was written by a newer diskprep" in unsealed.stage(source, code=13).err
    assert content(unsealed.root) == before


@pytest.mark.parametrize("what", ["config", "index", "keys", "snapshots"])
def test_damage_that_cannot_be_made_good_is_told_with_its_place(unsealed: Place, source: Path, what: str) -> None:
    path = unsealed.repository / what
    spoil(next(path.iterdir()) if path.is_dir() else path, 20 if what == "config" else 100)
    before = content(unsealed.root)
    told = unsealed.stage(source, code=30).err
    assert what.removesuffix("s") in told
    assert {name: content(unsealed.root).get(name) for name in before} == before


@pytest.mark.parametrize(
    "harm", ["flip", pytest.param("cut", marks=pytest.mark.slow), pytest.param("gone", marks=pytest.mark.slow)]
)
def test_a_damaged_pack_is_stored_again(unsealed: Place, source: Path, tmp_path: Path, harm: str) -> None:
    pack = max(unsealed.repository.glob("data/??/*"), key=lambda path: path.stat().st_size)
    if harm == "flip":
        spoil(pack, pack.stat().st_size // 2)
    elif harm == "cut":
        pack.chmod(0o600)
        os.truncate(pack, pack.stat().st_size - 1)
    else:
        pack.unlink()
    told = unsealed.stage(source).err
    assert "1 packs of an earlier run are damaged; their content is stored again" in told
    unsealed.assert_whole(source, tmp_path / "restored")


def test_a_staging_of_another_trip(sealed: Place, source: Path) -> None:
    before = content(sealed.root)
    told = sealed.stage(source, job="job-two", code=42).err
    assert "job_name is 'job-one', not 'job-two'" in told
    assert "name another staging" in told
    told = sealed.stage(source / "odd", code=42).err
    assert "sources is" in told
    assert content(sealed.root) == before


def test_a_short_passphrase(place: Place, source: Path) -> None:
    Path(place.secret[1]).write_text("short\n")
    assert "16 characters" in place.stage(source, code=2).err
    assert not place.root.exists()


@pytest.mark.parametrize(
    "more",
    [
        ("--passphrase-file", "FILE", "--passphrase-fd", "0"),
        ("--passphrase-file", "FILE", "--passphrase-command", "cat FILE"),
        ("--passphrase-file", "FILE", "--generate-passphrase"),
    ],
)
def test_a_passphrase_given_twice(place: Place, source: Path, more: tuple[str, ...]) -> None:
    words = tuple(word.replace("FILE", place.secret[1]) for word in more)
    assert "in one way, not two" in place.stage(source, more=words, code=2).err
    assert not place.root.exists()


@pytest.mark.parametrize(
    ("options", "code", "hint"),
    [
        (("--fixed-blocks", "100k"), 2, "a power of two from 16k to 4M"),
        (("--exclude-larger-than", "many"), 2, "is not a size"),
        (("--exclude", "[a"), 2, "--exclude"),
        (("--exclude-file", "/nowhere/patterns"), 2, "/nowhere/patterns"),
        (("--snapshot", "magic"), 2, "magic"),
        (("--snapshot", "zfs"), 2, "use --snapshot auto or none"),
    ],
)
def test_a_mistake_in_the_options(place: Place, source: Path, options: tuple[str, ...], code: int, hint: str) -> None:
    assert hint in place.stage(source, more=options, code=code).err
    assert not place.root.exists()


def test_all_of_the_source_left_out(place: Place, source: Path) -> None:
    done = place.stage(source, more=("--exclude", "source"))
    assert f"the source {source} is left out by a pattern" in done.err


def test_a_staging_that_is_a_file(place: Place, source: Path) -> None:
    place.root.write_text("precious")
    told = place.stage(source, code=5).err
    assert str(place.root) in told
    assert place.root.read_text() == "precious"


@pytest.mark.root
def test_a_staging_that_cannot_be_written_to(place: Place, source: Path) -> None:
    need_root()
    place.root.mkdir()
    run("mount", "-t", "tmpfs", "-o", "ro", "room", place.root)
    try:
        told = place.stage(source, code=5).err
        assert "Read-only file system" in told
    finally:
        run("umount", place.root)
