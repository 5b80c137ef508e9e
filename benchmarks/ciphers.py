"""XTS alone: GB/s of one thread and of a thread a core, beside the AES it is made of, and OpenSSL's own XTS.

    .venv/bin/python benchmarks/ciphers.py

Blocks of 4 MiB are encrypted in pieces of 1 MiB, as when a disk is filled, each thread into one buffer of its own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable

import report
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from harness import turns

from diskprep.secrets import Secret
from diskprep.volume.bitlocker import xts

NUMBA, NUMPY = "diskprep, numba, XTS-AES-256", "diskprep, numpy alone, XTS-AES-256"
ASKED = {NUMBA: "4.00", NUMPY: "1.50"}  # GB/s of one core
SECTOR = 512
_BLOCK = 4 << 20
_PIECE = 1 << 20
_SECONDS = 0.5

#: Works on one piece: input, output with room for a cipher block more, and where it lies on the volume.
Work = Callable[[memoryview, memoryview, int], object]


def compared(runs: int) -> str:
    """The table."""
    one, two = os.urandom(64), os.urandom(32)
    kinds: dict[str, Callable[[], Work]] = {}
    if xts.WHITEN is not xts.whiten_by_numpy:
        kinds[NUMBA] = lambda: _xts(one, xts.WHITEN)
        kinds["diskprep, numba, XTS-AES-128"] = lambda: _xts(two, xts.WHITEN)
        kinds["the same, decrypting, XTS-AES-256"] = lambda: _xts(one, xts.WHITEN, decrypt=True)
    kinds[NUMPY] = lambda: _xts(one, xts.whiten_by_numpy)
    kinds["cryptography, AES-256-ECB: no tweaks"] = lambda: _ecb(one[:32])
    cores = os.cpu_count() or 1
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in kinds}
    for name in turns(runs, list(kinds)):
        found[name][0].append(_rate(kinds[name], 1))
        found[name][1].append(_rate(kinds[name], cores))
    rows = [
        (name, ASKED.get(name, ""), report.spread(alone), report.spread(together))
        for name, (alone, together) in found.items()
    ]
    rows += [
        (f"openssl speed, aes-256-xts, {size:,} bytes a call", "", _openssl(size, 1), _openssl(size, cores))
        for size in (SECTOR, 16384)
    ]
    best = statistics.median(next(iter(found.values()))[0])
    raw = statistics.median(found["cryptography, AES-256-ECB: no tweaks"][0])
    head = ("sectors of 512 bytes, GB/s", "asked", "one thread", f"{cores} threads together")
    return f"{report.table(head, rows)}\n\nThe first row is {best / raw:.2f} of what the block cipher alone does."


def _xts(key: bytes, whiten: xts.Whiten, *, decrypt: bool = False) -> Work:
    cipher = xts.Xts(Secret(key), SECTOR, whiten)
    run = cipher.decrypt if decrypt else cipher.encrypt
    return lambda source, out, offset: run(source, out[: len(source)], offset)


def _ecb(key: bytes) -> Work:
    context = Cipher(algorithms.AES(key), modes.ECB()).encryptor()

    def run(source: memoryview, out: memoryview, _offset: int) -> None:
        for at in range(0, _PIECE, xts.BLOCK_BYTES):
            context.update_into(source[at : at + xts.BLOCK_BYTES], out[at:])

    return run


def _rate(make: Callable[[], Work], threads: int) -> float:
    """GB/s of `threads` threads together, each with its own cipher and buffers."""
    done = [0] * threads
    start, stop = threading.Barrier(threads + 1, timeout=60), threading.Event()

    def body(number: int) -> None:
        source, out, work = memoryview(bytearray(os.urandom(_BLOCK))), memoryview(bytearray(_PIECE + 16)), make()
        work(source[:_PIECE], out, 0)  # compiled, and its buffers made, off the clock
        start.wait()
        while not stop.is_set():
            for at in range(0, _BLOCK, _PIECE):
                work(source[at : at + _PIECE], out, done[number] + at)
            done[number] += _BLOCK

    workers = [threading.Thread(target=body, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    time.sleep(_SECONDS)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - began) / 1e9


def _openssl(size: int, processes: int) -> str:
    """GB/s as `openssl speed` tells them, or a dash where it cannot."""
    command = ["openssl", "speed", "-mr", "-evp", "aes-256-xts", "-bytes", str(size), "-seconds", "1"]
    command += ["-elapsed", *(["-multi", str(processes)] if processes > 1 else [])]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (total,) = [line for line in said.splitlines() if line.startswith("+F:")]
        return report.figure(float(total.split(":")[3]) / 1e9)
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return "-"


if __name__ == "__main__":
    print(compared(3))
