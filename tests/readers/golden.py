"""How the golden repositories were made, for the day another version's is added.

    python tests/readers/golden.py NAME [RESTIC]      as root; makes fixtures/repositories/NAME, with RESTIC or with us

Every version is given the same source, below /srv/golden, which must not exist. What was stored is told by
`expected.json` beside the repository. It is made once: a golden repository is never made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from diskprep.repository.keys import ScryptCost
from diskprep.repository.repository import create
from diskprep.secrets import Secret
from diskprep.source import Source
from diskprep.staging.writer import backup
from diskprep.store.directory import DirectoryStore

FOLDER = Path(__file__).parents[2] / "fixtures/repositories"
PASSPHRASE = "golden for ever and ever"
SOURCE = Path("/srv/golden/source")
_MOMENT = 1_700_000_000_123_456_789


def make_source() -> None:
    """Most things a tree may hold, small."""
    SOURCE.mkdir(parents=True)
    (SOURCE / "folder/deep").mkdir(parents=True)
    (SOURCE / "empty folder").mkdir(mode=0o711)
    (SOURCE / "empty").write_bytes(b"")
    (SOURCE / "folder/text").write_text("some lines of text\n" * 40)
    (SOURCE / "folder/several chunks").write_bytes(
        b"".join(hashlib.sha256(b"%d" % number).hexdigest().encode()[:4] * 64 for number in range(9000))
    )
    (SOURCE / "folder/deep/zeros").write_bytes(b"begin" + bytes(3 << 20) + b"end")
    (SOURCE / "folder/noise").write_bytes(b"".join(hashlib.sha256(b"n%d" % i).digest() for i in range(200)))
    for name in (b"new\nline", b"not-utf8-\xff\xfe", b'tab\tquote"back\\slash', b"<&>", "ünï€".encode(), b"n" * 255):
        descriptor = os.open(os.path.join(os.fsencode(SOURCE / "folder"), name), os.O_WRONLY | os.O_CREAT, 0o640)  # noqa: PTH118
        os.write(descriptor, name)
        os.close(descriptor)
    (SOURCE / "link").symlink_to("folder/text")
    (SOURCE / "hard-1").write_bytes(b"linked" * 100)
    (SOURCE / "hard-2").hardlink_to(SOURCE / "hard-1")
    os.mkfifo(SOURCE / "fifo")
    (SOURCE / "suid").write_bytes(b"#!/bin/true\n")
    os.chown(SOURCE / "suid", 1234, 5678)
    (SOURCE / "suid").chmod(0o4755)
    os.setxattr(SOURCE / "suid", "user.note", b"\x00value")
    for path in sorted(SOURCE.rglob("*"), key=lambda path: -len(path.parts)):
        os.utime(path, ns=(_MOMENT, _MOMENT + len(path.name)), follow_symlinks=False)


def change_source() -> None:
    """For the second recovery point."""
    (SOURCE / "folder/text").write_text("other text\n")
    (SOURCE / "hard-2").unlink()
    (SOURCE / "added").write_text("added later\n")
    for name in ("folder/text", "added", "folder", "."):
        os.utime(SOURCE / name, ns=(_MOMENT, _MOMENT + 7 * 10**9))


def describe(root: Path) -> dict[str, dict[str, Any]]:
    """Every entry below `root` by its path, in which bytes that are not UTF-8 have the escapes of `os.fsdecode`."""
    found: dict[str, dict[str, Any]] = {}
    links: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        entry: dict[str, Any] = {"mode": status.st_mode, "mtime_ns": status.st_mtime_ns}
        entry["owner"] = [status.st_uid, status.st_gid]
        if stat.S_ISREG(status.st_mode):
            entry |= {"size": status.st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            if status.st_nlink > 1:
                entry["linked_with"] = links.setdefault(status.st_ino, str(path.relative_to(root)))
            if attributes := [name for name in os.listxattr(path) if name.startswith("user.")]:
                entry["xattrs"] = {name: os.getxattr(path, name).hex() for name in attributes}
        if stat.S_ISLNK(status.st_mode):
            entry["target"] = str(path.readlink())
        found[str(path.relative_to(root))] = entry
    return found


def main(name: str, restic: str = "") -> None:
    place = FOLDER / name
    place.mkdir(parents=True)
    repository = place / "repository"
    environment = {**os.environ, "RESTIC_PASSWORD": PASSPHRASE, "RESTIC_REPOSITORY": str(repository), "TZ": "UTC"}
    if restic:
        subprocess.run([restic, "--no-cache", "init"], env=environment, check=True)
    else:
        repository.mkdir()
        ours = create(DirectoryStore(repository), Secret(PASSPHRASE), cost=ScryptCost(n=1 << 15, r=8, p=1))
    expected = []
    try:
        for step in (make_source, change_source):
            step()
            if restic:
                command = [restic, "--no-cache", "backup", "--host", "golden", str(SOURCE)]
                subprocess.run(command, env=environment, check=True)
            else:
                backup(ours, [Source(os.fsencode(SOURCE))], hostname="golden")
            expected.append(describe(SOURCE))
    finally:
        shutil.rmtree(SOURCE.parent)
    (place / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    for folder in sorted(repository.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        elif folder.is_file():
            folder.chmod(0o644)


if __name__ == "__main__":
    main(*sys.argv[1:])
