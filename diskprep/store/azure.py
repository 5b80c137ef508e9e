"""Azure Blob storage as a store: a container (or a prefix in one) of block blobs, and the account they are in.

The one place that imports the storage SDK. Invariants: every request that carries data carries its MD5, which the
service checks; every object keeps the MD5 of its whole as Content-MD5, and a whole read is checked against it; no
credential gets into a message, a repr or a log; a store may be used from several threads.

Write order of `write`: up to 4 MiB one Put Blob; above that Put Block of each 4 MiB and one Put Block List, which makes
the object visible. Blocks that are never committed are invisible and the service drops them after a week.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, urlsplit

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import (
    BlobBlock,
    BlobProperties,
    BlobSasPermissions,
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    ContentSettings,
    ExponentialRetry,
    StandardBlobTier,
    generate_blob_sas,
    generate_container_sas,
)

from diskprep import clock
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, DiskprepError, NotFound, NotSignedIn, StorageUnavailable
from diskprep.secrets import Secret
from diskprep.store import (
    AccessTier,
    Account,
    BlobState,
    ChooseTier,
    ContentProperties,
    ImportTarget,
    Store,
    StoredObject,
    check_metadata,
    check_name,
    check_properties,
)
from diskprep.store.azure_errors import REHYDRATE, code_of, translated

BLOCK_BYTES: Final = 4 << 20
_PAGE_BYTES: Final = 512
_SINGLE_GET_BYTES: Final = 256 << 20  # a pack comes in one request
_COPY_TIMEOUT_S: Final = 600.0
_COPY_SAS_VALID: Final = timedelta(minutes=30)  # the time above, and as much as clocks may differ
_TIERS: Final = {  # the cooler, the later
    AccessTier.HOT: StandardBlobTier.HOT,
    AccessTier.COOL: StandardBlobTier.COOL,
    AccessTier.COLD: StandardBlobTier.COLD,
}

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
        with translated(f"create the container {name} in {self._url}", ignore=("ContainerAlreadyExists",)):
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
        with translated(f"open the account {self._name}", instead={"AuthenticationFailed": refused}):
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
        self._choose_tier: ChooseTier = lambda _name, _parts: AccessTier.DEFAULT
        self._refusals: dict[str, str] = {}  # location of a source -> why the service copies nothing from there

    def __repr__(self) -> str:
        return f"AzureStore({self.location!r})"

    @property
    def location(self) -> str:
        return f"{self._account_url}/{self._client.container_name}/{self._prefix}".rstrip("/")

    def probe(self) -> None:
        """Ask for one name. Raises NotSignedIn, NotFound or StorageUnavailable when the container does not open."""
        with translated(f"open {self.location}"):
            next(iter(self._client.list_blobs(name_starts_with=self._prefix or None, results_per_page=1)), None)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        start = self._prefix + (check_name(prefix.removesuffix("/")) + "/" if prefix else "")
        with translated(f"list {self.location}/{prefix}"):
            for blob in self._client.list_blobs(name_starts_with=start or None):
                yield self._object(blob)

    def stat(self, name: str) -> StoredObject | None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        try:
            with translated(f"look at {name} in {self.location}"):
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
        with translated(f"read {name} in {self.location}", instead={"InvalidRange": short}):
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
        settings, tier = ContentSettings(content_md5=bytearray(whole.digest())), self._tier(name, parts)
        if sum(memoryview(part).nbytes for part in parts) <= BLOCK_BYTES:
            with translated(f"write {name} in {self.location}"):
                blob.upload_blob(
                    b"".join(parts),
                    overwrite=True,
                    content_settings=settings,
                    transactional_content_md5=bytearray(whole.digest()),
                    standard_blob_tier=tier,
                )
            return
        block_ids = []
        for data in _blocks(parts):
            block_ids.append(uuid.uuid4().hex)  # never the ids of another writer of the same name
            self.stage_block(name, block_ids[-1], data, hashlib.md5(data, usedforsecurity=False).digest())
        self._commit(name, block_ids, settings, tier)

    def delete(self, name: str) -> None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        with translated(f"delete {name} in {self.location}", ignore=("BlobNotFound",)):
            blob.delete_blob()

    def stage_block(self, name: str, block_id: str, data: Buffer, md5: bytes) -> None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        wrong = DataDamaged(f"a block of {name} does not have the MD5 it was announced with")
        codes = ("Md5Mismatch", "InvalidOperation")  # the service's word and the emulator's
        with translated(f"write a block of {name} in {self.location}", instead=dict.fromkeys(codes, wrong)):
            blob.stage_block(_uniform(block_id), bytes(data), transactional_content_md5=bytearray(md5))

    def commit_blocks(self, name: str, block_ids: Sequence[str], *, md5: bytes | None = None) -> None:
        settings = ContentSettings(content_md5=bytearray(md5)) if md5 is not None else None
        self._commit(name, block_ids, settings, None)

    def _commit(
        self, name: str, block_ids: Sequence[str], settings: ContentSettings | None, tier: StandardBlobTier | None
    ) -> None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        blocks = [BlobBlock(_uniform(i)) for i in block_ids]
        missing = NotFound(f"a block of {name} was never staged in {self.location}")
        with translated(f"commit {name} in {self.location}", instead={"InvalidBlockList": missing}):
            blob.commit_block_list(blocks, content_settings=settings, standard_blob_tier=tier)

    def inspect(self, name: str) -> BlobState | None:
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        try:
            with translated(f"look at {name} in {self.location}"):
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
        with translated(f"create {name} in {self.location}"):
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
        with translated(f"write pages of {name} in {self.location}", instead=wrong):
            blob.upload_page(bytes(data), offset, size, transactional_content_md5=bytearray(md5))

    def set_metadata(self, name: str, metadata: Mapping[str, str]) -> None:
        check_metadata(metadata)
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        with translated(f"set the metadata of {name} in {self.location}"):
            blob.set_blob_metadata(dict(metadata))

    def set_properties(self, name: str, properties: ContentProperties) -> None:
        check_properties(properties)
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        with translated(f"set the properties of {name} in {self.location}"):
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
        """Copy Blob inside one account, Copy Blob From URL between two; returns when the copy is complete.

        The former is done in the background; the latter, of at most 256 MiB, is there whole when it is answered, or
        not at all. Once it was refused nothing more is copied from that source: see `why_not_copied`.
        """
        check_name(name)
        if not isinstance(source, AzureStore) or source.location in self._refusals:
            return False
        if source._account_url != self._account_url:  # noqa: SLF001  (same class)
            return self._copied_across(source, name)
        # The account's key, which signs the request, opens what else is in the account; a signed address would have a
        # service check the signature, and some read the whole blob for it.
        address = Secret(source._address(name)) if self._key is not None else source._readable_url(name)  # noqa: SLF001
        blob = self._client.get_blob_client(self._prefix + name)
        give_up_s = clock.monotonic_s() + _COPY_TIMEOUT_S
        with translated(f"copy {name} from {source.location} to {self.location}"):
            if address is None:
                return False
            blob.start_copy_from_url(address.reveal(), standard_blob_tier=self._tier(name))
            while (state := blob.get_blob_properties().copy.status) == "pending" and clock.monotonic_s() < give_up_s:
                clock.sleep(0.5)
        if state != "success":
            raise StorageUnavailable(f"the service ended the copy of {name} to {self.location} as {state!r}")
        return True

    def why_not_copied(self, source: Store) -> str:
        """The service's code for why it copies nothing from `source`, once it has refused; empty when it has not."""
        return self._refusals.get(source.location, "")

    def _copied_across(self, source: AzureStore, name: str) -> bool:
        if source._key is None:  # a signature that was given may be for more than this blob
            return False
        address = source._readable_url(name)
        assert address is not None
        blob = self._client.get_blob_client(self._prefix + name)
        status, code = 0, ""
        with translated(f"copy {name} from {source.location} to {self.location}"):
            try:
                blob.start_copy_from_url(address.reveal(), requires_sync=True, standard_blob_tier=self._tier(name))
            except HttpResponseError as error:
                status, code = error.status_code or 0, code_of(error) or f"HTTP {error.status_code}"
        if not code:
            return True
        if status == 404 and source.stat(name) is None:
            raise NotFound(f"{name} does not exist in {source.location}")
        if status < 500 or status == 501:  # else another copy may succeed
            self._refusals[source.location] = code
        return False

    def choose_tiers(self, choose: ChooseTier) -> None:
        self._choose_tier = choose

    def cool(self, name: str, tier: AccessTier) -> None:
        if tier is AccessTier.DEFAULT:
            return
        blob = self._client.get_blob_client(self._prefix + check_name(name))
        with translated(f"move {name} in {self.location} to the tier {tier}"):
            found = str(blob.get_blob_properties().blob_tier or "").lower()
            if found == "archive":
                raise StorageUnavailable(f"{name} in {self.location} is in the Archive tier", hint=REHYDRATE)
            coolness = list(_TIERS)
            if found not in coolness or coolness.index(AccessTier(found)) < coolness.index(tier):
                blob.set_standard_blob_tier(_TIERS[tier])

    def _tier(self, name: str, parts: Sequence[Buffer] = ()) -> StandardBlobTier | None:
        return _TIERS.get(self._choose_tier(name, parts))

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
        with translated(f"read the properties of the account of {self.location}"), service:
            policy = service.get_service_properties().get("delete_retention_policy")
        return int(policy.days or 0) if policy is not None and policy.enabled else 0

    def _readable_url(self, name: str) -> Secret[str] | None:
        """An address that reads this blob for half an hour; None when this store holds nothing to sign with."""
        query = self._sas
        if self._key is not None:
            query = Secret(
                generate_blob_sas(
                    str(self._client.account_name),
                    self._client.container_name,
                    self._prefix + name,
                    account_key=self._key.reveal(),
                    permission=BlobSasPermissions(read=True),
                    expiry=clock.now() + _COPY_SAS_VALID,
                    protocol="https" if self._account_url.startswith("https:") else None,
                )
            )
        return query and Secret(f"{self._address(name)}?{query.reveal()}")

    def _address(self, name: str) -> str:
        return f"{self._account_url}/{self._client.container_name}/{quote(self._prefix + name)}"

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
