"""The fast ciphers give byte for byte what the library's slow ones give."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from diskprep.secrets import Secret
from diskprep.volume.bitlocker import Method
from diskprep.volume.bitlocker.volume import sector_cipher
from diskprep.volume.bitlocker.xts import BLOCK_BYTES, WHITEN, Xts, whiten_by_numpy

OFFSETS = [0, 512 * 4096, (1 << 41) + 4096 * 7]  # the last has a sector number over 2^32


def reference(method: Method, key: bytes, data: bytes, offset: int, sector: int) -> bytes:
    out = b""
    for at in range(0, len(data), sector):
        if method in (Method.XTS_AES_128, Method.XTS_AES_256):
            tweak = ((offset + at) // sector).to_bytes(16, "little")
            cipher = Cipher(algorithms.AES(key), modes.XTS(tweak))
        else:
            place = (offset + at).to_bytes(16, "little")
            vector = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(place)
            cipher = Cipher(algorithms.AES(key), modes.CBC(vector))
        out += cipher.encryptor().update(data[at : at + sector])
    return out


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("offset", OFFSETS)
def test_sectors_are_encrypted_as_the_library_does_it(method: Method, sector: int, offset: int) -> None:
    key, data = os.urandom(method.key_bytes), os.urandom(4096 * 70)
    cipher = sector_cipher(method, Secret(key), sector)
    out = bytearray(len(data))
    cipher.encrypt(data, memoryview(out), offset)
    assert out == reference(method, key, data, offset, sector)
    cipher.decrypt(out, memoryview(out), offset)
    assert out == data


@pytest.mark.parametrize("method", [Method.XTS_AES_128, Method.XTS_AES_256])
@pytest.mark.parametrize("sector", [512, 1024, 4096])
def test_the_loops_of_numpy_and_of_numba_give_the_same(method: Method, sector: int) -> None:
    assert WHITEN is not whiten_by_numpy
    key, data = Secret(os.urandom(method.key_bytes)), os.urandom(2 * BLOCK_BYTES + 4096 * 3)
    outs = []
    for whiten in (WHITEN, whiten_by_numpy):
        out = bytearray(len(data))
        cipher = Xts(key, sector, whiten)
        cipher.encrypt(data, memoryview(out), OFFSETS[2])
        outs.append(bytes(out))
        cipher.decrypt(out, memoryview(out), OFFSETS[2])
        assert out == data
    assert outs[0] == outs[1]
    assert outs[1][:8192] == reference(method, key.reveal(), data[:8192], OFFSETS[2], sector)


def test_a_computer_without_numba_encrypts_as_the_library_does() -> None:
    script = textwrap.dedent(
        """
        import sys
        sys.modules["numba"] = None
        from diskprep.secrets import Secret
        from diskprep.volume.bitlocker import Method
        from diskprep.volume.bitlocker.volume import sector_cipher
        out = bytearray(4096 * 70)
        cipher = sector_cipher(Method.XTS_AES_256, Secret(bytes(range(64))), 512)
        cipher.encrypt(bytes(len(out)), memoryview(out), 1 << 41)
        sys.stdout.buffer.write(out)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=120)
    assert done.stdout == reference(Method.XTS_AES_256, bytes(range(64)), bytes(4096 * 70), 1 << 41, 512)


@pytest.mark.parametrize("method", Method)
def test_a_long_run_in_place_equals_short_runs(method: Method) -> None:
    data = os.urandom(3 * 1024 * 1024 + 512 * 3)
    cipher = sector_cipher(method, Secret(os.urandom(method.key_bytes)), 512)
    whole, parts = bytearray(data), bytearray(len(data))
    cipher.encrypt(whole, memoryview(whole), 1 << 20)
    for at in range(0, len(data), 512 * 777):
        end = min(at + 512 * 777, len(data))
        cipher.encrypt(memoryview(data)[at:end], memoryview(parts)[at:end], (1 << 20) + at)
    assert whole == parts


@pytest.mark.parametrize("method", Method)
def test_input_that_starts_at_an_odd_address_is_taken(method: Method) -> None:
    data = os.urandom(8192 + 3)
    cipher = sector_cipher(method, Secret(os.urandom(method.key_bytes)), 512)
    straight, odd = bytearray(8192), bytearray(8195)
    cipher.encrypt(data[3:], memoryview(straight), 0)
    cipher.encrypt(memoryview(data)[3:], memoryview(odd)[3:], 0)
    assert odd[3:] == straight


@pytest.mark.parametrize("method", Method)
def test_threads_do_not_disturb_each_other(method: Method) -> None:
    cipher = sector_cipher(method, Secret(os.urandom(method.key_bytes)), 512)
    data = os.urandom(1024 * 1024)

    def work(number: int) -> bool:
        out = bytearray(len(data))
        cipher.encrypt(data, memoryview(out), number << 20)
        cipher.decrypt(out, memoryview(out), number << 20)
        return out == data

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))
