"""Volumes that Windows made: opened to the published content, or refused with a clear error."""

from __future__ import annotations

import hashlib

import pytest
from volume_support import WindowsVolume

from diskprep.errors import DataDamaged
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import (
    Method,
    MethodNotSupported,
    NoRecoveryProtector,
    NotBitLocker,
    Volume,
    VolumeNotActive,
    WrongRecoveryPassword,
    unlock,
    unlock_with_password,
)
from diskprep.volume.device import open_for_reading
from diskprep.volume.format import open_disk, read_volume_identity

METHODS = {
    "bitlk-aes-cbc-128": Method.AES_CBC_128,
    "bitlk-aes-cbc-128-4k": Method.AES_CBC_128,
    "bitlk-aes-cbc-256": Method.AES_CBC_256,
    "bitlk-aes-xts-128": Method.XTS_AES_128,
    "bitlk-aes-xts-128-4k": Method.XTS_AES_128,
    "bitlk-aes-xts-128-crc": Method.XTS_AES_128,
    "bitlk-aes-xts-128-first-recovery": Method.XTS_AES_128,
    "bitlk-aes-xts-128-new-entry": Method.XTS_AES_128,
    "bitlk-aes-xts-128-smart-card": Method.XTS_AES_128,
    "bitlk-aes-xts-128-startup-key": Method.XTS_AES_128,
    "bitlk-aes-xts-128-startup-key-win11": Method.XTS_AES_128,
    "bitlk-aes-xts-128-two-recovery": Method.XTS_AES_128,
    "bitlk-aes-xts-128-unicode": Method.XTS_AES_128,
    "bitlk-aes-xts-256": Method.XTS_AES_256,
}
ANY_PASSWORD = Secret("235818-357951-253979-013365-241120-245575-342914-591910")
REFUSED = {
    "bitlk-aes-cbc-elephant-128": MethodNotSupported,
    "bitlk-aes-cbc-elephant-256": MethodNotSupported,
    "bitlk-aes-xts-128-clearkey-only": NoRecoveryProtector,
    "bitlk-aes-xts-128-eow": VolumeNotActive,
    "bitlk-partially-encrypted-aes-cbc-128": VolumeNotActive,
    "bitlk-togo-aes-cbc-128": NotBitLocker,
    "bitlk-togo-aes-xts-128": NotBitLocker,
}


def digest(volume: Volume) -> str:
    whole = hashlib.sha256()
    for offset in range(0, volume.size_bytes, 4 << 20):
        whole.update(volume.pread(min(4 << 20, volume.size_bytes - offset), offset))
    return whole.hexdigest()


def test_every_sample_is_either_opened_or_refused_here(windows_volumes: dict[str, WindowsVolume]) -> None:
    assert set(windows_volumes) == set(METHODS) | set(REFUSED)


@pytest.mark.parametrize("name", METHODS)
def test_a_recovery_password_opens_the_volume_to_the_published_content(
    name: str, windows_volumes: dict[str, WindowsVolume]
) -> None:
    facts = windows_volumes[name].facts
    with open_for_reading(windows_volumes[name].path) as device:
        volume = open_disk(device, Secret(facts["rp"]))
        assert volume.metadata.method is METHODS[name]
        identity = read_volume_identity(device)
        assert identity is not None
        assert str(volume.metadata.guid) == facts["guid"] == str(identity[0])
        assert digest(volume) == facts["sha256sum"]
        assert volume.pread(8, 3) == b"NTFS    "


def test_each_of_two_recovery_passwords_opens_the_volume(windows_volumes: dict[str, WindowsVolume]) -> None:
    with open_for_reading(windows_volumes["bitlk-aes-xts-128-two-recovery"].path) as device:
        for text in (
            "478401-067859-043868-000935-121330-337425-718509-484979",
            "297693-343387-338492-284526-405482-424886-634931-555093",
        ):
            assert (
                unlock(device, Secret(text), start_bytes=0, size_bytes=device.size_bytes).pread(2, 510) == b"\x55\xaa"
            )


@pytest.mark.parametrize("name", ["bitlk-aes-xts-128", "bitlk-aes-cbc-256", "bitlk-aes-xts-128-unicode"])
def test_a_users_password_opens_the_volume_too(name: str, windows_volumes: dict[str, WindowsVolume]) -> None:
    found = windows_volumes[name]
    with open_for_reading(found.path) as device:
        volume = unlock_with_password(device, Secret(found.facts["pw"]), start_bytes=0, size_bytes=device.size_bytes)
        assert digest(volume) == found.facts["sha256sum"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, windows_volumes: dict[str, WindowsVolume]) -> None:
    facts = windows_volumes[name].facts
    password = Secret(facts["rp"]) if facts.get("rp", "-").count("-") == 7 else ANY_PASSWORD
    with open_for_reading(windows_volumes[name].path) as device, pytest.raises(DataDamaged) as caught:
        open_disk(device, password)
    assert type(caught.value) is REFUSED[name]


def test_a_wrong_recovery_password_is_told_from_damage(windows_volumes: dict[str, WindowsVolume]) -> None:
    with open_for_reading(windows_volumes["bitlk-aes-xts-256"].path) as device, pytest.raises(WrongRecoveryPassword):
        open_disk(device, ANY_PASSWORD)
