"""Staged seeds for the benchmarks of disks: made by `diskprep stage`, as new before each run, and with many packs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import data
import tools
from harness import Bench, Place, say

from diskprep.disk.plan import size_for
from diskprep.seal import FileKind, Seal, SealedFile, load_seal, save_seal

_REPOSITORY = "repository"
_SIGNATURE = "seed?sv=2021-08-06&sr=c&sp=rwl&se=2099-01-01T00:00:00Z&sig=bWFkZSB1cA%3D%3D"  # opens nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A sealed staging. `packs` are its data packs, which travel on disks; `size` their bytes."""

    staging: Path
    signature: Path  # the file that holds it
    packs: Sequence[Path]
    size: int

    @property
    def seal(self) -> Seal:
        return load_seal(self.staging / "seal.json")

    def disk_bytes(self, disks: int) -> int:
        """The size of disks of which so many take the seed, and one less does not."""
        seal = self.seal
        return size_for(seal.data_packs, disks, indexes=seal.of_kind(FileKind.INDEX))

    def renew(self) -> None:
        """Make the staging what it was before a disk was prepared. The repository is not touched."""
        pristine = _pristine(self.staging)
        for path in self.staging.iterdir():
            if path.name != _REPOSITORY:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(pristine, self.staging, symlinks=True, dirs_exist_ok=True)


def stage(bench: Bench, folder: Path, size: int) -> Seed:
    """A seed of about `size` bytes that do not compress, staged below `folder`. Raises Failed."""
    say(f"staging {size / 1e6:,.0f} MB")
    source = data.ensure("big", size / (data.BIG_FILES * data.BIG_BYTES), folder / "data")
    place = Place(repository=folder / "staging", home=folder, passphrase_file=folder / "passphrase")
    place.passphrase_file.write_text("correct horse battery staple\n")
    place.passphrase_file.chmod(0o600)
    tools.stage(bench).backup(place, source, limit_s=bench.limit_s)
    shutil.rmtree(source)
    return _seed(place.repository)


def multiply(seed: Seed, count: int, size: int) -> Seed:
    """`seed` with made-up packs of `size` bytes of noise added, until it has `count`. No index names them."""
    repository, old = seed.staging / _REPOSITORY, seed.seal
    files = list(old.files)  # the new ones go to the end: what indexes name stays where it is
    for _ in range(count - len(seed.packs)):
        noise = os.urandom(size)
        digest = hashlib.sha256(noise).hexdigest()
        file = SealedFile(name=f"data/{digest[:2]}/{digest}", kind=FileKind.DATA, size_bytes=size, sha256=digest)
        path = repository / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(noise)
        files.append(file)
    seed.renew()
    save_seal(seed.staging / "seal.json", dataclasses.replace(old, files=tuple(files)))
    return _seed(seed.staging)


def _seed(staging: Path) -> Seed:
    pristine, signature = _pristine(staging), staging.with_name("signature")
    shutil.rmtree(pristine, ignore_errors=True)
    left_out = shutil.ignore_patterns(_REPOSITORY)
    shutil.copytree(staging, pristine, symlinks=True, ignore=left_out)
    signature.write_text(_SIGNATURE)
    packs = load_seal(staging / "seal.json").data_packs
    return Seed(
        staging=staging,
        signature=signature,
        packs=[staging / _REPOSITORY / pack.name for pack in packs],
        size=sum(pack.size_bytes for pack in packs),
    )


def _pristine(staging: Path) -> Path:
    return staging.with_name(staging.name + ".pristine")
