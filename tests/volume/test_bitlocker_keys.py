"""Recovery passwords and the chain of keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskprep.errors import UsageError
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import generate_recovery_password, keys, layout, parse_recovery_password
from diskprep.volume.bitlocker.layout import Datum, DatumType, KeyKind

PASSWORD = Secret("235818-357951-253979-013365-241120-245575-342914-591910")


def ccm(nonce: str, tag: str, text: str) -> Datum:
    return Datum(role=0, type=DatumType.AES_CCM, body=bytes.fromhex(nonce + tag + text))


def test_the_chain_of_a_volume_made_by_windows_is_derived_value_for_value() -> None:
    raw = parse_recovery_password(PASSWORD)
    assert raw.reveal().hex() == "be531d7f315abf04a0553557c67932d2"
    initial = keys.recovery_hash(raw)
    assert initial.reveal().hex() == "fdd303817e456f7a4b64a7063ae00be752a46841e57da98caf8522f136cb3411"
    stretched = keys.stretch(initial, bytes.fromhex("2ba080989af9b50c203aaebd0b40d498"))
    assert stretched.reveal().hex() == "1a39f926dab83e947fa85125b91e556e9ecc2bc5968924e03de234878d1fd4bd"
    wrapped = ccm(
        "c049ba6f3632d50106000000",
        "0cf85869dd1a2a024c48d0f6aa00b997",
        "005e2014c039b7de88e6906efdbe83055dcb5c097dbe3fe86860ef7bae367a13178587cd8cd11af5713d0bb7",
    )
    kind, vmk = layout.decode_key(keys.unwrap(stretched, wrapped) or b"")
    assert kind == KeyKind.VMK
    assert vmk.hex() == "e5862465920b1190605ae29547623fb9c0dbafab073c85634bfb0f8a4b8cf46b"
    wrapped = ccm(
        "c049ba6f3632d50108000000",
        "c83ef7a71e23b0b146ffd20691856484",
        "bf886e2f056985d40b004f3b46d5929a1f1a09b20d2778fa3ca2d803f29ea3395c6b4723dd601b34997ae75e",
    )
    kind, fvek = layout.decode_key(keys.unwrap(Secret(vmk), wrapped) or b"")
    assert kind == layout.Method.XTS_AES_128.code
    assert fvek.hex() == "cc493ad40376cf719d3725073d5c1a6ca5759fc4ad179c95572f16c01a260d66"


def test_a_generated_recovery_password_is_valid_and_never_the_same() -> None:
    texts = {generate_recovery_password().reveal() for _ in range(50)}
    assert len(texts) == 50
    for text in texts:
        assert len(parse_recovery_password(Secret(text)).reveal()) == 16


@given(st.binary(min_size=16, max_size=16))
def test_every_16_bytes_have_one_recovery_password(raw: bytes) -> None:
    groups = [int.from_bytes(raw[at : at + 2], "little") * 11 for at in range(0, 16, 2)]
    assert parse_recovery_password(Secret("-".join(f"{group:06d}" for group in groups))).reveal() == raw


@given(st.integers(0, 47), st.integers(1, 9))
def test_one_wrong_digit_is_noticed_and_not_repeated_in_the_message(place: int, change: int) -> None:
    groups = PASSWORD.reveal().split("-")
    group, digit = divmod(place, 6)
    wrong = (int(groups[group][digit]) + change) % 10
    groups[group] = groups[group][:digit] + str(wrong) + groups[group][digit + 1 :]
    with pytest.raises(UsageError) as caught:
        parse_recovery_password(Secret("-".join(groups)))
    assert groups[group] not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "235818", PASSWORD.reveal()[:-1], PASSWORD.reveal() + "-000000", "720896-" * 7 + "720896", "x" * 55]
)
def test_what_is_no_recovery_password_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_recovery_password(Secret(text))


def test_a_group_past_16_bits_is_refused_though_it_is_divisible_by_11() -> None:
    with pytest.raises(UsageError, match="group 1"):
        parse_recovery_password(Secret("720896" + PASSWORD.reveal()[6:]))


def test_nonces_never_repeat_under_one_time() -> None:
    nonces = keys.Nonces(filetime=123)
    made = [nonces.next() for _ in range(20)] + [nonces.next(committed=True)]
    assert len(set(made)) == len(made)


def test_a_wrapped_key_opens_with_its_own_key_only() -> None:
    key, other = Secret(b"k" * 32), Secret(b"o" * 32)
    datum = keys.wrap(key, bytes(12), b"payload", role=3)
    assert keys.unwrap(key, datum) == b"payload"
    assert keys.unwrap(other, datum) is None
    assert keys.unwrap(key, Datum(role=3, type=DatumType.AES_CCM, body=datum.body[:20])) is None
