"""Plain copying of blobs with Azure's SDK, as azcopy does it: the service copies, or the bytes pass through here; and
reading all of a container once, each blob's MD5 compared with the one the service keeps.

    python benchmarks/plaincopy.py service|through|read --account URL --key-file FILE --api-version VERSION
        --from CONTAINER [--to CONTAINER]
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from azure.storage.blob import BlobProperties, ContainerClient, ContentSettings

AT_A_TIME = 16  # azcopy's number for each core, up to 32 on small computers; an emulator wants no more than this
BLOCK_BYTES = 8 << 20  # azcopy's
_WHOLE_BYTES = 256 << 20  # a blob comes in one request


class Copier:
    """Copies between two containers of an account."""

    def __init__(self, account: str, key: str, source: str, target: str, *, api_version: str) -> None:
        self._account = account
        self._key = key
        self._name = account.rstrip("/").rpartition("/")[2]
        self._api_version = api_version
        self.source, self._target = self._container(source), self._container(target)

    def service(self, blob: BlobProperties) -> None:
        """Copy Blob: the service does it alone. Inside an account the key that opens the target opens the source."""
        target = self._target.get_blob_client(blob.name)
        state: object = target.start_copy_from_url(f"{self.source.url}/{quote(blob.name)}")["copy_status"]
        while state == "pending":
            time.sleep(0.1)
            state = target.get_blob_properties().copy.status
        if state != "success":
            raise SystemExit(f"{blob.name}: the copy ended as {state}")

    def through(self, blob: BlobProperties) -> None:
        """Download it and upload it, with the MD5 it had."""
        data = self.source.download_blob(blob.name).readall()
        settings = ContentSettings(content_md5=bytearray(_md5(blob)))
        self._target.upload_blob(blob.name, data, overwrite=True, content_settings=settings)

    def read(self, blob: BlobProperties) -> None:
        data = self.source.download_blob(blob.name).readall()
        if len(data) != blob.size or hashlib.md5(data, usedforsecurity=False).digest() != _md5(blob):
            raise SystemExit(f"{blob.name} is not what its MD5 says")

    def _container(self, name: str) -> ContainerClient:
        return ContainerClient(
            self._account,
            name,
            credential={"account_name": self._name, "account_key": self._key},
            max_single_put_size=BLOCK_BYTES,
            max_block_size=BLOCK_BYTES,
            max_single_get_size=_WHOLE_BYTES,
            api_version=self._api_version,
        )


def _md5(blob: BlobProperties) -> bytes:
    kept = blob.content_settings.content_md5
    if not kept:
        raise SystemExit(f"{blob.name} has no MD5")
    return bytes(kept)


def main() -> None:
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # more connections than it keeps are no concern
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("service", "through", "read"))
    parser.add_argument("--account", required=True, help="http://127.0.0.1:PORT/NAME")
    parser.add_argument("--key-file", required=True, type=Path)
    parser.add_argument("--from", required=True, dest="source")
    parser.add_argument("--to", default="none")
    parser.add_argument("--api-version", required=True)
    given = parser.parse_args()
    key = given.key_file.read_text().strip()
    copier = Copier(given.account, key, given.source, given.to, api_version=given.api_version)
    work: Callable[[BlobProperties], None] = getattr(copier, given.what)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        done = sum(1 for _ in pool.map(work, copier.source.list_blobs(name_starts_with="data/")))
    print(f"{done} blobs")
    if not done:
        raise SystemExit("there are no blobs")


if __name__ == "__main__":
    main()
