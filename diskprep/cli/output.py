"""Output: bars, notes and errors on stderr, results on stdout.

Bars are drawn on a terminal only; elsewhere a plain line tells of progress every minute, but not of percentages, which
come as seldom as somebody looks. Text that came from file
names or from the service is escaped before it is shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diskprep import clock, interrupts
from diskprep.errors import DiskprepError
from diskprep.events import Event, Progress

if TYPE_CHECKING:
    from tqdm import tqdm

_PLAIN_LINE_S = 60.0
_PERCENT_BAR = "{desc}: {percentage:3.0f}% |{bar}|"


class Screen:
    """Draws events. One lock, because stages emit from several threads.

    `standing`: how things stand, for SIGUSR1, where that is more than the last events say.
    """

    standing = ""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._bars: dict[tuple[str, str], tqdm[Any]] = {}
        self._last: dict[tuple[str, str], Progress] = {}
        self._told_s = clock.monotonic_s()
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Draw an event. Never fails: a terminal that went away must not stop a copy that runs for hours."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            if isinstance(event, Progress):
                self._progress(event)
            elif not self._quiet:
                self._close_finished()
                self._write(f"{event.stage:>14}  {escape(event.text)}")

    def close(self) -> None:
        with self._lock:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()

    def tell_status(self) -> None:
        """Write one line on what goes on; safe inside a signal's handler, which may have broken into a write."""
        with contextlib.suppress(OSError):
            os.write(2, f"{self._status()}\n".encode())

    def _status(self) -> str:
        if self.standing:
            return escape(self.standing)
        return "; ".join(_describe(progress) for progress in list(self._last.values())[-3:]) or "starting"

    def _progress(self, event: Progress) -> None:
        key = (event.stage, event.item)
        self._last.pop(key, None)
        self._last[key] = event
        if self._quiet:
            return
        if self._terminal:
            self._bar(key, event)
        elif event.unit != "%" and clock.monotonic_s() - self._told_s >= _PLAIN_LINE_S:
            self._told_s = clock.monotonic_s()
            self._write(_describe(event))

    def _bar(self, key: tuple[str, str], event: Progress) -> None:
        bar = self._bars.get(key)
        if bar is None:
            self._close_finished()
            bar = self._bars[key] = _tqdm()(
                desc=f"{escape(f'{event.stage} {event.item}'.strip()):>14}",
                total=event.total_bytes,
                unit=event.unit,
                unit_scale=event.unit == "B",
                bar_format=None if event.unit == "B" else _PERCENT_BAR,
                leave=False,
                file=sys.stderr,
                dynamic_ncols=True,
            )
        bar.total = event.total_bytes
        bar.update(event.done_bytes - bar.n)
        if event.unit == "%":  # the next one may come in a quarter of an hour: this one must not be left undrawn
            bar.refresh()

    def _close_finished(self) -> None:
        for key, bar in list(self._bars.items()):
            if bar.total is not None and bar.n >= bar.total:
                bar.close()
                del self._bars[key]

    def _write(self, line: str) -> None:
        if self._terminal:
            _tqdm().write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def _tqdm() -> type[tqdm[Any]]:
    with interrupts.held():  # an import that is broken off can leave a library half there
        from tqdm import tqdm  # noqa: PLC0415 - it loads asyncio, and bars are drawn on terminals only

    return tqdm


@contextmanager
def screen(*, quiet: bool = False) -> Iterator[Screen]:
    """A Screen that SIGUSR1 makes print one status line, closed at the end."""
    drawn = Screen(quiet=quiet)
    before = signal.signal(signal.SIGUSR1, lambda *_: drawn.tell_status())
    try:
        yield drawn
    finally:
        signal.signal(signal.SIGUSR1, before)
        drawn.close()


def escape(text: str) -> str:
    """`text` with everything that could steer a terminal, or is no character, shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def size(count: float) -> str:
    """Bytes for people, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as they need; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]

    def line(cells: tuple[str, ...]) -> str:
        first, *others = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(headings), "  ".join("-" * width for width in widths), *map(line, rows)])


def print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, sort_keys=True))


def print_error(error: DiskprepError) -> int:
    """What happened and what to do next, on stderr; returns the exit code."""
    with contextlib.suppress(OSError, ValueError):
        print(f"diskprep: {escape(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"          {escape(error.hint)}", file=sys.stderr)
    return error.exit_code


def word(value: object) -> str:
    """A path, an address or a name as one word of a command that can be typed."""
    return shlex.quote(str(value))


def next_step(command: str) -> None:
    """The next sensible command, on stderr, after the result on stdout."""
    sys.stdout.flush()
    print(f"next: {escape(command)}", file=sys.stderr)


def _describe(progress: Progress) -> str:
    name = f"{progress.stage} {progress.item}".strip()
    if progress.unit == "%":
        return f"{escape(name):>14}  {progress.done_bytes} %"
    of = f" of {size(progress.total_bytes)}" if progress.total_bytes is not None else ""
    return f"{escape(name):>14}  {size(progress.done_bytes)}{of}"
