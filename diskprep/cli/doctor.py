"""`diskprep doctor`: what this computer has and what it lacks."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from diskprep import process
from diskprep.cli import inputs, output

_TOOLS = (
    ("mkntfs", "to format disks", True),
    ("blkdiscard", "to discard what was on SSDs", False),
    ("smartctl", "to read the health of disks", False),
)


def doctor(json: inputs.Json = False) -> None:
    """Check this computer for what diskprep needs. Exit code 1 when something needed is missing."""
    checks = [(name, why, needed, process.find(name) or "") for name, why, needed in _TOOLS]
    library = next((str(p) for p in Path("/").glob("usr/lib/*/libntfs-3g.so.8*")), "")
    checks.append(("libntfs-3g", "to fill NTFS without mounting it", True, library))
    missing = [name for name, _why, needed, found in checks if needed and not found]
    if json:
        output.print_json({"root": os.geteuid() == 0, "found": {name: found for name, _, _, found in checks}})
    else:
        for name, why, needed, found in checks:
            print(f"{'ok' if found else 'MISSING' if needed else 'absent':8} {name:12} {why}")
        print(f"{'ok' if os.geteuid() == 0 else 'absent':8} {'root':12} to open real disks; images need no root")
    if missing:
        packages = sorted({process.PACKAGES.get(name, "ntfs-3g") for name in missing})
        output.next_step(f"apt-get install {' '.join(packages)}")
        raise typer.Exit(1)
