"""MD5s that are taken together are those taken one by one."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskprep.exchange import md5

_WINDOW = np.frombuffer(random.Random(5).randbytes(1 << 18), np.uint8)
#: Lengths around the ends of MD5's rounds, where its padding takes one more.
_EDGES = (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 4096)


def one_by_one(spans: list[tuple[int, int]]) -> list[bytes]:
    return [hashlib.md5(_WINDOW[at : at + size].tobytes(), usedforsecurity=False).digest() for at, size in spans]


def test_the_loop_is_compiled_here() -> None:
    assert md5.FAST


@given(st.lists(st.tuples(st.integers(0, 1000).map(lambda n: n * 4), st.sampled_from(_EDGES)), max_size=20))
def test_lengths_around_the_padding(spans: list[tuple[int, int]]) -> None:
    assert md5.digests(_WINDOW, spans) == one_by_one(spans)


@given(st.lists(st.tuples(st.integers(0, 1000).map(lambda n: n * 4), st.integers(0, 200_000)), max_size=12))
def test_any_lengths_together(spans: list[tuple[int, int]]) -> None:
    assert md5.digests(_WINDOW, spans) == one_by_one(spans)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_whole_blocks_of_any_number_up_to_the_window_end(count: int) -> None:
    size = len(_WINDOW) // 16
    spans = [(len(_WINDOW) - (number + 1) * size, size) for number in range(count)]
    assert md5.digests(_WINDOW, spans) == one_by_one(spans)


def test_a_computer_without_numba_takes_them_one_by_one() -> None:
    script = textwrap.dedent(
        """
        import sys
        sys.modules["numba"] = None
        import numpy as np
        from diskprep.exchange import md5
        assert not md5.FAST
        print(b"".join(md5.digests(np.zeros(4096, np.uint8), [(0, 100), (4, 64)])).hex())
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=120, text=True)
    wanted = [hashlib.md5(bytes(size), usedforsecurity=False).hexdigest() for size in (100, 64)]
    assert done.stdout.strip() == "".join(wanted)
