"""Whether the Import/Export service takes a disk. Pure judgement over facts, after the service's list of what it takes.

That is another question than whether a disk may be erased: an image is fine for a rehearsal, and no drive to ship.
"""

from __future__ import annotations

from dataclasses import dataclass

from diskprep.disk.inventory import DiskFacts

MAX_DISK_BYTES = 10 * 10**12  # of the documents on Azure Backup; those on Import/Export give no limit
_KINDS = {
    "sas": "SAS",
    "nvme": "NVMe",
    "mmc": "a memory card",
    "virtio": "a virtual machine's disk",
    "xen": "a virtual machine's disk",
    "loop": "an image file",
    "iscsi": "a volume on the network",
    "fc": "a volume on the network",
    "network": "a volume on the network",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`reasons` why the service does not take a disk; `warnings` where its documents disagree or the disk is silent."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def taken(self) -> bool:
        return not self.reasons


def judge(disk: DiskFacts) -> Verdict:
    """What the service says to a disk: SATA II or III, 2.5" SSD or 2.5"/3.5" HDD, logical sectors of 512 bytes.

    Source: the requirements of Azure Import/Export (supported hardware), and those of offline seeding in Azure Backup
    for the size. A job takes ten drives (plan.MAX_DRIVES).
    """
    reasons, warnings = _about_interface(disk)
    solid = not disk.rotational if disk.rotation_rpm is None else disk.rotation_rpm == 0
    if disk.sector_bytes != 512:
        reasons.append(f"logical sectors of {disk.sector_bytes} bytes, not 512")
    wanted = {"2.5"} if solid else {"2.5", "3.5"}
    if disk.form_factor and disk.form_factor not in wanted:
        kind = "SSD" if solid else "hard disk"
        shape = f"{disk.form_factor}-inch" if disk.form_factor[0].isdigit() else disk.form_factor
        reasons.append(f"a {shape} {kind}; it takes {' or '.join(sorted(wanted))} inches")
    if disk.size_bytes > MAX_DISK_BYTES:
        warnings.append("larger than the 10 TB that the documents of Azure Backup name; ask before you ship it")
    return Verdict(reasons=tuple(reasons), warnings=tuple(warnings))


def _about_interface(disk: DiskFacts) -> tuple[list[str], list[str]]:
    if kind := _KINDS.get(disk.bus):
        return [f"{kind}, not a SATA drive"], []
    if disk.bus == "usb" and (disk.removable or not disk.is_ata):
        return ["a USB device that shows no SATA drive; it takes no sticks and no external disks"], []
    if disk.bus not in {"sata", "usb"}:
        return [f"{'not known to be' if not disk.bus else f'{disk.bus}, not'} a SATA drive"], []
    if disk.sata_generation in {0, 1}:
        return [f"{'not SATA' if not disk.sata_generation else 'SATA I'}; it takes SATA II and III"], []
    if disk.bus == "usb":
        return [], ["behind a USB bridge: it takes the bare drive, not an external disk or an enclosure"]
    return [], []
