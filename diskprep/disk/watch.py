"""A disk that is plugged in is noticed: the kernel's or udev's message wakes us, and sysfs tells what is there.

What counts is what sysfs shows; a message that was lost, or cannot be had at all (in a container), costs one second.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from diskprep import clock
from diskprep.disk import inventory
from diskprep.disk.inventory import DiskFacts
from diskprep.disk.machine import Machine

_LOOK_S = 1.0
_SERIAL_S = 10.0  # a drive behind a bridge may need this long to start and to tell its number


def arrivals(known: Iterable[DiskFacts] | None = None, stop: threading.Event | None = None) -> Iterator[DiskFacts]:
    """Each whole disk with a medium that is attached from now on, once for every attachment.

    `known` are the disks that were there already; without it those that are there at this call. One of them that is
    pulled and plugged in again is told again. A disk is told when its serial can be read, or after ten seconds without
    one: the guard says what is wrong with it then. Ends within a second after `stop` is set.
    """
    told = set(_attachments(Machine())) if known is None else {disk.attachment for disk in known}
    return _watch(told, _waiter(), stop)


def _watch(told: set[tuple[str, int]], wait: _Seconds, stop: threading.Event | None) -> Iterator[DiskFacts]:
    waiting: dict[tuple[str, int], float] = {}
    while stop is None or not stop.is_set():
        machine = Machine()
        now = set(_attachments(machine))
        told &= now  # kernels before 5.15 count no attachments: there a name that was gone is new
        waiting = {key: since for key, since in waiting.items() if key in now}
        new = now - told
        for disk in inventory.list_disks(machine, ours=machine.names) if new else ():
            if disk.attachment not in new:
                continue
            since = waiting.setdefault(disk.attachment, clock.monotonic_s())
            if disk.serial or disk.bus == "loop" or clock.monotonic_s() - since > _SERIAL_S:
                told.add(disk.attachment)
                yield disk
        wait.wait(stop)


def _attachments(machine: Machine) -> Iterator[tuple[str, int]]:
    for name in machine.names:
        if inventory.is_disk(machine, name) and inventory.size_bytes(machine, name):
            yield name, int(machine.attribute(name, "diskseq") or 0)


class _Seconds:
    """Waits a second."""

    def wait(self, stop: threading.Event | None) -> None:
        if stop is None:
            clock.sleep(_LOOK_S)
        else:
            stop.wait(_LOOK_S)


class _Messages(_Seconds):
    """Waits for a message about a block device, a second at most."""

    def __init__(self) -> None:
        import pyudev  # type: ignore[import-untyped]  # noqa: PLC0415  it loads libudev, which a computer without udev may lack

        source = "udev" if Machine().has_udev else "kernel"  # udev's message comes when it knows the serial
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
        self._monitor.filter_by("block")
        self._monitor.start()

    def wait(self, stop: threading.Event | None) -> None:
        try:
            if self._monitor.poll(timeout=_LOOK_S) is not None:
                while self._monitor.poll(timeout=0) is not None:  # the partitions' messages follow at once
                    pass
        except OSError:  # more messages came than the socket holds
            super().wait(stop)


def _waiter() -> _Seconds:
    try:
        return _Messages()
    except (ImportError, OSError):
        return _Seconds()
