"""Figures as Markdown: tables, the computer they come from, and the marked sections of a document that hold them."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
from harness import GIB, Bench, Reading, say
from tools import Tool


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def drawn(line: Sequence[str]) -> str:
        first, *rest = zip(line, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]) + " |"

    return "\n".join(map(drawn, [lines[0], rule, *lines[1:]]))


def median(readings: Sequence[Reading]) -> Reading:
    """A reading of the medians, each figure by itself."""
    return Reading(
        wall_s=statistics.median(r.wall_s for r in readings),
        cpu_s=statistics.median(r.cpu_s for r in readings),
        pss_bytes=round(statistics.median(r.pss_bytes for r in readings)),
        rss_bytes=round(statistics.median(r.rss_bytes for r in readings)),
    )


def spread(values: Sequence[float]) -> str:
    """Median, and from the lowest to the highest where there is more than one."""
    if len(values) == 1:
        return figure(values[0])
    return f"{figure(statistics.median(values))} ({figure(min(values))} - {figure(max(values))})"


def memory(size: int) -> str:
    """Megabytes; nothing for what ended before it was looked at."""
    return f"{size / 1e6:,.0f}" if size else "-"


def figure(value: float) -> str:
    """Three digits, as many as such a measurement bears."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def circumstances(bench: Bench, tools: Sequence[Tool]) -> str:
    """What was measured on what, as a list."""
    return conditions(bench, [tool.version() for tool in tools])


def conditions(bench: Bench, versions: Sequence[str], *, sources: str = "sources in the page cache") -> str:
    """The same for a benchmark whose tools are no backup tools."""
    cores = os.cpu_count() or 1
    memory = psutil.virtual_memory().total / GIB
    where = " and ".join(sorted(bench.written_to))
    repeated = "once" if bench.runs == 1 else f"{bench.runs} times, the tools taking turns"
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores of {_processor()}, {memory:.0f} GiB of memory, "
        f"Linux {platform.release()}",
        "; ".join(versions) + f"; Python {platform.python_version()}",
        f"each run {repeated}; {sources}, written to {where}",
    ]
    if bench.scale != 1:
        lines.append(f"**at scale {bench.scale:g}: to try the benchmark out, not to be compared**")
    return "\n".join(f"- {line}" for line in lines)


def keep(bench: Bench, section: str, text: str, *, failed: bool) -> None:
    """Print `text`, and put it between the marks of `section` in the document, if one was named.

    What is only a part, a trial at another scale, or has failures does not replace figures of a whole run.
    """
    print(text)
    if bench.document is None:
        return
    if failed or not bench.whole:
        why = "there were failures" if failed else "this was not the whole benchmark"
        say(f"{bench.document} stays as it is: {why}")
        return
    write_section(bench.document, section, text)
    say(f"kept in {bench.document}, section {section}")


def write_section(document: Path, section: str, text: str) -> None:
    """Replace what is between the marks of `section`, or append it with marks."""
    begin, end = (f"<!-- {which} {section} -->" for which in ("begin", "end"))
    block = f"{begin}\n\n{text}\n\n{end}"
    old = document.read_text() if document.exists() else ""
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    new, found = pattern.subn(lambda _: block, old)
    document.write_text(new if found else f"{old}\n{block}\n".lstrip("\n"))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
