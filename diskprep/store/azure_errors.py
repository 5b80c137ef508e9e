"""The blob service's errors as ours, without what the SDK's quote."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from azure.core.exceptions import AzureError, HttpResponseError

from diskprep.errors import DataDamaged, DiskprepError, NotFound, NotSignedIn, StorageUnavailable

REHYDRATE = "rehydrate it to Hot or Cool first"


@contextlib.contextmanager
def translated(
    doing: str, *, ignore: Sequence[str] = (), instead: dict[str, DiskprepError] | None = None
) -> Iterator[None]:
    """Turn the SDK's errors into ours, without the address they quote: it may hold a signature."""
    try:
        yield
    except AzureError as error:
        if code_of(error) in ignore:
            return
        found = (instead or {}).get(code_of(error)) or _our_error(error, doing)
    else:
        return
    raise found  # outside of the except block, so that the SDK's error is not even its context


def code_of(error: AzureError) -> str:
    """The service's code of the error, such as `BlobNotFound`."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _our_error(error: AzureError, doing: str) -> DiskprepError:
    status = error.status_code if isinstance(error, HttpResponseError) else None
    code = code_of(error) or (f"HTTP {status}" if status else type(error).__name__)
    if status == 404:
        return NotFound(f"cannot {doing}: {code}")
    if status in (401, 403):
        return NotSignedIn(
            f"cannot {doing}: the service refuses the credential ({code})",
            hint="check the account's key or signature, its expiry, and this computer's clock",
        )
    if code == "Md5Mismatch":
        return DataDamaged(f"cannot {doing}: the bytes do not have the MD5 they were announced with")
    if code == "BlobArchived":
        return StorageUnavailable(f"cannot {doing}: it is in the Archive tier", hint=REHYDRATE)
    if "AccessTierNotSupported" in code:
        return StorageUnavailable(f"cannot {doing}: {code}", hint="the account does not have this access tier")
    return StorageUnavailable(f"cannot {doing}: {code}", hint="check the network and the service, then try again")
