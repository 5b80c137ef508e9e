"""The blob server that tests talk to, and what opens it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from diskprep.secrets import Secret
from diskprep.store.azure import AzureAccount, AzureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Azurite:
    """A running blob server on loopback and what opens it. `elsewhere` is another account on it."""

    account: AzureAccount
    account_name: str
    key: Secret[str]
    port: int
    url: str
    elsewhere: AzureAccount
    elsewhere_key: Secret[str]

    def fresh_container(self, prefix: str = "") -> AzureStore:
        return self.account.container(f"test-{uuid.uuid4().hex[:12]}", prefix)

    def container_elsewhere(self) -> AzureStore:
        return self.elsewhere.container(f"test-{uuid.uuid4().hex[:12]}")

    def unreachable(self, store: AzureStore) -> AzureStore:
        """The same container of `elsewhere`, by an address from which the service does not copy."""
        url = self.elsewhere.url.replace("127.0.0.1", "localhost")
        name = store.location.rpartition("/")[2]
        return AzureAccount(url, self.elsewhere_key, api_version="2025-11-05").container(name)

    def rclone_environment(self) -> dict[str, str]:
        """Environment that makes `az:CONTAINER` a remote of rclone."""
        return {
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_AZ_TYPE": "azureblob",
            "RCLONE_CONFIG_AZ_USE_EMULATOR": "true",
            "RCLONE_CONFIG_AZ_ENDPOINT": self.url,
        }


def tier(store: AzureStore, name: str) -> str:
    """The tier that the service shows of an object; in brackets when nobody asked for one."""
    found = store._client.get_blob_client(store._prefix + name).get_blob_properties()
    return f"({found.blob_tier})" if found.blob_tier_inferred else str(found.blob_tier)
