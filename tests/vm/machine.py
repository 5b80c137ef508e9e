"""A copy computer: a Debian in QEMU with disks of our choosing, and commands run as root in it.

QEMU translates the processor's instructions, so no hardware support is needed and it is slow. Commands go through
Debian's qemu-guest-agent over a virtual serial port; a folder of ours is mounted at `/exchange`. `.ci/vm-image` makes
what is booted.

Invariants: each wait has a limit; the virtual machine is gone when `powered_on` ends, and when the tests are killed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from support import need

IMAGE = Path(__file__).parents[2] / ".cache/copy-computer"
SYSTEM_SERIAL = "SYSTEM-DISK-0"
BOOT_SECONDS = 240
_MEMORY_MB = 2048
_AGENT = "org.qemu.guest_agent.0"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Bus(StrEnum):
    """How a disk is attached. Only SATA disks answer ATA IDENTIFY; only the others can have sectors of 4096 bytes."""

    SATA = "sata"
    SCSI = "scsi"
    USB = "usb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A disk of the copy computer: the image behind it, and what it says about itself. `wwn` is 16 hex digits."""

    image: Path
    serial: str
    model: str
    bus: Bus = Bus.SATA
    sector_bytes: int = 512
    rotations: int = 7200
    wwn: str = ""

    def arguments(self, slot: int) -> list[str]:
        """QEMU's options for the disk in this slot; slots of SATA disks are the ports 0 to 5."""
        drive = f"if=none,id=disk{slot},format=raw,file={str(self.image).replace(',', ',,')}"
        says = f"drive=disk{slot},serial={self.serial},rotation_rate={self.rotations}"
        if self.wwn:
            says += f",wwn=0x{self.wwn}"
        if self.sector_bytes != 512:
            says += f",logical_block_size={self.sector_bytes},physical_block_size={self.sector_bytes}"
        device = {
            Bus.SATA: [f"ide-hd,bus=ide.{slot},model={self.model},{says}"],
            Bus.SCSI: [f"virtio-scsi-pci,id=host{slot}", f"scsi-hd,bus=host{slot}.0,product={self.model},{says}"],
            Bus.USB: [
                f"usb-bot,id=bridge{slot},bus=xhci.0,serial={self.serial}",
                f"scsi-hd,bus=bridge{slot}.0,scsi-id=0,lun=0,product={self.model},{says}",
            ],
        }[self.bus]
        return ["-drive", drive, *(word for one in device for word in ("-device", one))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A command that has ended in the copy computer."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


class CopyComputer:
    """A copy computer that runs."""

    def __init__(self, agent: socket.socket, console: Path) -> None:
        self._agent, self._stream, self._console = agent, agent.makefile("rb"), console

    def run(self, *argv: str | Path, stdin: str = "", code: int | None = 0, seconds: float = 120) -> Answer:
        """Run a program to its end, and insist on the exit code unless `code` is None."""
        words = [str(word) for word in argv]
        asked = {
            "path": words[0],
            "arg": words[1:],
            "env": [_PATH, "HOME=/root", "LANG=C.UTF-8"],
            "input-data": base64.b64encode(stdin.encode()).decode(),
            "capture-output": True,
        }
        deadline = time.monotonic() + seconds
        number = self._ask("guest-exec", asked, seconds=30)["pid"]
        while not (state := self._ask("guest-exec-status", {"pid": number}, seconds=30))["exited"]:
            if time.monotonic() > deadline:
                pytest.fail(f"{words[0]} took more than {seconds} s in the copy computer; {self.last_words()}")
            time.sleep(0.2)
        out, err = (
            base64.b64decode(state.get(name, "")).decode("utf-8", "surrogateescape")
            for name in ("out-data", "err-data")
        )
        done = Answer(code=int(state.get("exitcode", -1)), out=out, err=err)
        assert code is None or done.code == code, (
            f"{words[0]}: exit {done.code}, not {code}: {out[-2000:]}{err[-4000:]}"
        )
        return done

    def wait_until_up(self) -> None:
        """Wait for the agent, the end of the boot, and the disks."""
        self._ask("guest-sync", {"id": 1}, seconds=BOOT_SECONDS)
        self.run("systemctl", "is-system-running", "--wait", code=None)
        self.run("udevadm", "settle")
        self.run("mkdir", "-p", "/exchange")
        self.run("mount", "-t", "9p", "-o", "trans=virtio,version=9p2000.L,msize=512000", "exchange", "/exchange")

    def power_off(self) -> None:
        """Ask the system to shut down; it writes back what it holds. Does not wait."""
        self._send("guest-shutdown", {})

    def last_words(self) -> str:
        """The end of what the kernel and systemd said on the console."""
        return f"the console's end: {self._console.read_text(errors='replace')[-3000:]}"

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        self._agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    def _ask(self, command: str, arguments: dict[str, Any], *, seconds: float) -> Any:
        self._agent.settimeout(seconds)
        try:
            self._send(command, arguments)
            line = self._stream.readline()
        except TimeoutError:
            line = b""
        if not line:
            pytest.fail(f"the copy computer did not answer {command} within {seconds} s; {self.last_words()}")
        answer = json.loads(line)
        assert "return" in answer, f"{command}: {answer}"
        return answer["return"]


@contextlib.contextmanager
def powered_on(system: Path, disks: Sequence[Attached], exchange: Path, *, scratch: Path) -> Iterator[CopyComputer]:
    """A copy computer with this system disk and these disks, up when it is handed over, shut down in the end.

    What fails in between, or does not end in time, is killed.
    """
    scratch.mkdir()
    listening, console, told = scratch / "agent", scratch / "console", scratch / "qemu"
    own = Attached(image=system, serial=SYSTEM_SERIAL, model="COPY COMPUTER", rotations=1)
    command = [
        *(need("setpriv"), "--pdeathsig", "KILL", need("qemu-system-x86_64")),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(_MEMORY_MB)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(IMAGE / "vmlinuz"), "-initrd", str(IMAGE / "initrd.img")),
        *("-append", "root=LABEL=copy-computer rw console=ttyS0 panic=-1 mitigations=off"),
        *("-serial", f"file:{console}"),
        *("-device", "virtio-serial", "-device", f"virtserialport,chardev=agent,name={_AGENT}"),
        *("-chardev", f"socket,id=agent,path={listening},server=on,wait=off"),
        *("-virtfs", f"local,path={exchange},mount_tag=exchange,security_model=none,multidevs=remap"),
        *("-device", "qemu-xhci,id=xhci"),
    ]
    for slot, disk in enumerate([own, *disks]):
        command += disk.arguments(slot)
    with told.open("wb") as errors:
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
    try:
        with _connected(listening, machine, told) as agent:
            computer = CopyComputer(agent, console)
            computer.wait_until_up()
            yield computer
            computer.power_off()
            try:
                assert machine.wait(120) == 0, told.read_text()
            except subprocess.TimeoutExpired:
                pytest.fail(f"the copy computer did not shut down; {computer.last_words()}")
    finally:
        machine.kill()
        machine.wait()


def _connected(path: Path, machine: subprocess.Popen[bytes], told: Path) -> socket.socket:
    """The agent's serial port; QEMU makes the socket in its first second."""
    deadline = time.monotonic() + 30
    while machine.poll() is None and time.monotonic() < deadline:
        agent = socket.socket(socket.AF_UNIX)
        try:
            agent.connect(str(path))
        except OSError:
            agent.close()
            time.sleep(0.1)
            continue
        return agent
    raise AssertionError(f"QEMU did not start: {told.read_text()}")
