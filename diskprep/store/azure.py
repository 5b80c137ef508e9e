"""Azure Blob storage as a store: a container (or a prefix in one) of block blobs, and the account they are in.

The one place that imports the storage SDK. Invariants: every request that carries data carries its MD5, which the
service checks; every object keeps the MD5 of its whole as Content-MD5, and a whole read is checked against it; no
credential gets into a message, a repr or a log; a store may be used from several threads.

Write order of `write`: up to 4 MiB one Put Blob; above that Put Block of each 4 MiB and one Put Block List, which makes
the object visible. Blocks that are never committed are invisible and the service drops them after a week.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, urlsplit

from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import (
    BlobBlock,
    BlobProperties,
    BlobSasPermissions,
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    ContentSettings,
    ExponentialRetry,
    generate_blob_sas,
    generate_container_sas,
)

from diskprep import clock
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, DiskprepError, NotFound, NotSignedIn, StorageUnavailable
from diskprep.secrets import Secret
from diskprep.store import (
    Account,
    BlobState,
    ContentProperties,
    ImportTarget,
    Store,
    StoredObject,
    check_metadata,
    check_name,
    check_properties,
)

BLOCK_BYTES: Final = 4 << 20
_PAGE_BYTES: Final = 512
_SINGLE_GET_BYTES: Final = 256 << 20  # a pack comes in one request
_COPY_SAS_VALID: Final = timedelta(hours=1)
_COPY_TIMEOUT_S: Final = 600.0

# The SDK logs addresses, and urllib3 under it whole queries with their signatures: nothing of that reaches a handler.
logging.getLogger("azure").addHandler(logging.NullHandler())
logging.getLogger("azure").propagate = False


class AzureAccount:
    """A storage account, opened by its key.

    `url` is the blob endpoint: `https://NAME.blob.core.windows.net`, or `http://127.0.0.1:PORT/NAME` of an emulator.
    `api_version` is the version of the service's protocol to speak; None: the SDK's newest.
    """

    def __init__(self, url: str, key: Secret[str], *, api_version: str | None = None) -> None:
        self._url = url.rstrip("/")
        parts = urlsplit(self._url)
        self._name = parts.path.strip("/") or (parts.hostname or "").partition(".")[0]
        self._key = key
        self._api_version = api_version

    def __repr__(self) -> str:
        return f"AzureAccount({self._url!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def url(self) -> str:
        return self._url

    def container(self, name: str, prefix: str = "") -> AzureStore:
        """The container, created when missing; with `prefix` (ends with `/`) only the blobs below it."""
        client = self._client(name, {"account_name": self._name, "account_key": self._key.reveal()})
        with _translated(f"create the container {name} in {self._url}", ignore=("ContainerAlreadyExists",)):
            client.create_container()
        return AzureStore(client, self._url, prefix=prefix, key=self._key)

    def container_sas(self, name: str, expires: datetime) -> Secret[str]:
        query = generate_container_sas(
            self._name,
            check_name(name),
            account_key=self._key.reveal(),
            permission=ContainerSasPermissions(read=True, add=True, create=True, write=True, delete=True, list=True),
            expiry=expires,
        )
        return Secret(f"{name}?{query}")

    def open_key(self, key: Secret[str]) -> Account:
        refused = NotSignedIn(f"the key does not open the account {self._name}")
        try:
            base64.b64decode(key.reveal(), validate=True)
        except ValueError:
            raise refused from None
        account = AzureAccount(self._url, key, api_version=self._api_version)
        client = account._client("probe", {"account_name": self._name, "account_key": key.reveal()})
        with _translated(f"open the account {self._name}", instead={"AuthenticationFailed": refused}):
            client.get_account_information()
        return account

    def open_sas(self, sas: Secret[str]) -> ImportTarget:
        name, _, query = sas.reveal().partition("?")
        if not name or "sig=" not in query:
            raise NotSignedIn("the container's signature is malformed")
        store = AzureStore(self._client(name, query), self._url, sas=Secret(query))
        store.probe()
        return store

    def _client(self, container: str, credential: Any) -> ContainerClient:
        version: dict[str, Any] = {"api_version": self._api_version} if self._api_version else {}
        return ContainerClient(
            self._url,
            check_name(container),
            credential=credential,
            retry_policy=ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=4),
            max_single_put_size=BLOCK_BYTES,
            max_block_size=BLOCK_BYTES,
            max_single_get_size=_SINGLE_GET_BYTES,
            **version,
        )


class AzureStore:
    """The block blobs of a container whose names start with `prefix`."""

    def __init__(
        self,
        client: ContainerClient,
        account_url: str,
        *,
        prefix: str = "",
        key: Secret[str] | None = None,
        sas: Secret[str] | None = None,
    ) -> None:
        if prefix:
            check_name(prefix.removesuffix("/"))
        self._client, self._account_url = client, account_url
        self._prefix = prefix.removesuffix("/") + "/" if prefix else ""
        self._key, self._sas = key, sas

    def __repr__(self) -> str:
        return f"AzureStore({self.location!r})"

    @property
    def location(self) -> str:
        return f"{self._account_url}/{self._client.container_name}/{self._prefix}".rstrip("/")

    def probe(self) -> None:
        """Ask for one name. Raises NotSignedIn, NotFound or StorageUnavailable when the container does not open."""
        with _translated(f"open {self.location}"):
            next(iter(self._client.list_blobs(name_starts_with=self._prefix or None, results_per_page=1)), None)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        start = self._prefix + (check_name(prefix.removesuffix("/")) + "/" if prefix else "")
        with _translated(f"list {self.location}/{prefix}"):
            for blob in self._client.list_blobs(name_starts_with=start or None):
                yield self._object(blob)

    def stat(self, name: str) -> StoredObject | None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        try:
            with _translated(f"look at {name} in {self.location}"):
                return self._object(blob.get_blob_properties())
        except NotFound:
            return None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        if length == 0:
            if self.stat(name) is None:
                raise NotFound(f"{name} does not exist in {self.location}")
            return b""
        whole = not offset and length is None
        short = DataDamaged(f"{name} in {self.location} is shorter than it should be")
        with _translated(f"read {name} in {self.location}", instead={"InvalidRange": short}):
            stream = self._client.download_blob(self._prefix + name, None if whole else offset, length)
            data: bytes = stream.readall()
        if length is not None and len(data) != length:
            raise short
        kept = _md5(stream.properties) if whole else None
        if kept is not None and hashlib.md5(data, usedforsecurity=False).digest() != kept:
            raise DataDamaged(f"{name} in {self.location} does not have the MD5 that is kept with it")
        return data

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        whole = hashlib.md5(usedforsecurity=False)
        for part in parts:
            whole.update(part)
        settings = ContentSettings(content_md5=bytearray(whole.digest()))
        if sum(memoryview(part).nbytes for part in parts) <= BLOCK_BYTES:
            with _translated(f"write {name} in {self.location}"):
                blob.upload_blob(
                    b"".join(parts),
                    overwrite=True,
                    content_settings=settings,
                    transactional_content_md5=bytearray(whole.digest()),
                )
            return
        block_ids = []
        for data in _blocks(parts):
            block_ids.append(uuid.uuid4().hex)  # never the ids of another writer of the same name
            self.stage_block(name, block_ids[-1], data, hashlib.md5(data, usedforsecurity=False).digest())
        self.commit_blocks(name, block_ids, md5=whole.digest())

    def delete(self, name: str) -> None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        with _translated(f"delete {name} in {self.location}", ignore=("BlobNotFound",)):
            blob.delete_blob()

    def stage_block(self, name: str, block_id: str, data: Buffer, md5: bytes) -> None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        wrong = DataDamaged(f"a block of {name} does not have the MD5 it was announced with")
        codes = ("Md5Mismatch", "InvalidOperation")  # the service's word and the emulator's
        with _translated(f"write a block of {name} in {self.location}", instead=dict.fromkeys(codes, wrong)):
            blob.stage_block(_uniform(block_id), bytes(data), transactional_content_md5=bytearray(md5))

    def commit_blocks(self, name: str, block_ids: Sequence[str], *, md5: bytes | None = None) -> None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        settings = ContentSettings(content_md5=bytearray(md5)) if md5 is not None else None
        missing = NotFound(f"a block of {name} was never staged in {self.location}")
        with _translated(f"commit {name} in {self.location}", instead={"InvalidBlockList": missing}):
            blob.commit_block_list([BlobBlock(_uniform(i)) for i in block_ids], content_settings=settings)

    def inspect(self, name: str) -> BlobState | None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        try:
            with _translated(f"look at {name} in {self.location}"):
                found = blob.get_blob_properties()
        except NotFound:
            return None
        settings = found.content_settings
        return BlobState(
            size_bytes=int(found.size),
            version=str(found.etag),
            is_page_blob=str(getattr(found.blob_type, "value", found.blob_type)) == "PageBlob",
            leased=str(found.lease.state) in ("leased", "breaking"),
            properties=ContentProperties(
                content_type=settings.content_type or "",
                content_md5=_md5(found),
                content_encoding=settings.content_encoding or "",
                content_language=settings.content_language or "",
                cache_control=settings.cache_control or "",
            ),
            metadata=dict(found.metadata or {}),
        )

    def create_pages(self, name: str, size_bytes: int, metadata: Mapping[str, str]) -> None:
        check_metadata(metadata)
        if size_bytes < 0 or size_bytes % _PAGE_BYTES:
            raise DataDamaged(f"a page blob has whole pages; {name} would have {size_bytes} bytes")
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        self.delete(name)  # one of another kind could not be replaced
        with _translated(f"create {name} in {self.location}"):
            blob.create_page_blob(size_bytes, metadata=dict(metadata))

    def write_pages(self, name: str, offset: int, data: Buffer, md5: bytes) -> None:
        size = memoryview(data).nbytes
        if offset < 0 or offset % _PAGE_BYTES or size % _PAGE_BYTES or not 0 < size <= BLOCK_BYTES:
            raise DataDamaged(f"{size} bytes at {offset} of {name} are not 1 to 8192 whole pages")
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        wrong: dict[str, DiskprepError] = {
            "Md5Mismatch": DataDamaged(f"pages of {name} do not have the MD5 they were announced with"),
            "InvalidOperation": DataDamaged(f"pages of {name} do not have the MD5 they were announced with"),
            "InvalidPageRange": DataDamaged(f"pages up to byte {offset + size} of {name} are beyond its end"),
            "InvalidBlobType": DataDamaged(f"{name} in {self.location} is not a page blob"),
        }
        with _translated(f"write pages of {name} in {self.location}", instead=wrong):
            blob.upload_page(bytes(data), offset, size, transactional_content_md5=bytearray(md5))

    def set_metadata(self, name: str, metadata: Mapping[str, str]) -> None:
        check_metadata(metadata)
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        with _translated(f"set the metadata of {name} in {self.location}"):
            blob.set_blob_metadata(dict(metadata))

    def set_properties(self, name: str, properties: ContentProperties) -> None:
        check_properties(properties)
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        with _translated(f"set the properties of {name} in {self.location}"):
            md5 = properties.content_md5 or _md5(blob.get_blob_properties())
            blob.set_http_headers(
                ContentSettings(
                    content_type=properties.content_type or None,
                    content_md5=None if md5 is None else bytearray(md5),
                    content_encoding=properties.content_encoding or None,
                    content_language=properties.content_language or None,
                    cache_control=properties.cache_control or None,
                )
            )

    def copy_from(self, source: Store, name: str) -> bool:
        """Copy Blob, which the service does on its own inside one account; returns when the copy is complete."""
        if not isinstance(source, AzureStore) or source._account_url != self._account_url:  # noqa: SLF001  (same class)
            return False
        address = source._readable_url(check_name(name))  # noqa: SLF001
        blob = self._client.get_blob_client(self._prefix + name)
        give_up_s = clock.monotonic_s() + _COPY_TIMEOUT_S
        with _translated(f"copy {name} from {source.location} to {self.location}"):
            if address is None:
                return False
            blob.start_copy_from_url(address.reveal())
            while (state := blob.get_blob_properties().copy.status) == "pending" and clock.monotonic_s() < give_up_s:
                clock.sleep(0.5)
        if state != "success":
            raise StorageUnavailable(f"the service ended the copy of {name} to {self.location} as {state!r}")
        return True

    def soft_delete_days(self) -> int | None:
        """For how many days the account keeps blobs that were deleted; 0: not at all, None: a container's signature
        may not ask."""
        if self._key is None:
            return None
        service = BlobServiceClient(
            self._account_url,
            credential={"account_name": str(self._client.account_name), "account_key": self._key.reveal()},
            api_version=self._client.api_version,
        )
        with _translated(f"read the properties of the account of {self.location}"), service:
            policy = service.get_service_properties().get("delete_retention_policy")
        return int(policy.days or 0) if policy is not None and policy.enabled else 0

    def _readable_url(self, name: str) -> Secret[str] | None:
        """An address that reads this blob for an hour; None when this store holds nothing to sign with."""
        container, blob = self._client.container_name, self._prefix + name
        query = self._sas
        if self._key is not None:
            query = Secret(
                generate_blob_sas(
                    str(self._client.account_name),
                    container,
                    blob,
                    account_key=self._key.reveal(),
                    permission=BlobSasPermissions(read=True),
                    expiry=clock.now() + _COPY_SAS_VALID,
                )
            )
        return query and Secret(f"{self._account_url}/{container}/{quote(blob)}?{query.reveal()}")

    def _object(self, blob: BlobProperties) -> StoredObject:
        name = str(blob.name).removeprefix(self._prefix)
        return StoredObject(name=name, size_bytes=int(blob.size), md5=_md5(blob))


def _md5(blob: BlobProperties) -> bytes | None:
    kept = blob.content_settings.content_md5
    return base64.b64decode(kept) if isinstance(kept, str) else bytes(kept) if kept else None


def _uniform(block_id: str) -> str:
    """Block ids of one blob must have one length; a digest of theirs has."""
    return hashlib.sha256(block_id.encode()).hexdigest()[:48]


def _blocks(parts: Sequence[Buffer]) -> Iterator[bytes]:
    """The concatenated parts in pieces of 4 MiB, joining no more than one piece at a time."""
    waiting = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            room = BLOCK_BYTES - len(waiting)
            waiting += view[:room]
            view = view[room:]
            if len(waiting) == BLOCK_BYTES:
                yield bytes(waiting)
                waiting.clear()
    if waiting:
        yield bytes(waiting)


@contextlib.contextmanager
def _translated(
    doing: str, *, ignore: Sequence[str] = (), instead: dict[str, DiskprepError] | None = None
) -> Iterator[None]:
    """Turn the SDK's errors into ours, without the address they quote: it may hold a signature."""
    try:
        yield
    except AzureError as error:
        if _code(error) in ignore:
            return
        found = (instead or {}).get(_code(error)) or _our_error(error, doing)
    else:
        return
    raise found  # outside of the except block, so that the SDK's error is not even its context


def _code(error: AzureError) -> str:
    """The service's code of the error, such as `BlobNotFound`."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _our_error(error: AzureError, doing: str) -> DiskprepError:
    status = error.status_code if isinstance(error, HttpResponseError) else None
    code = _code(error) or (f"HTTP {status}" if status else type(error).__name__)
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
        return StorageUnavailable(
            f"cannot {doing}: it is in the Archive tier", hint="rehydrate it to Hot or Cool first"
        )
    return StorageUnavailable(f"cannot {doing}: {code}", hint="check the network and the service, then try again")
