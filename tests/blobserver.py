"""The blob server that tests talk to, and what opens it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from diskprep.secrets import Secret
from diskprep.store.azure import AzureAccount, AzureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Azurite:
    """A running blob server on loopback and what opens it."""

    account: AzureAccount
    account_name: str
    key: Secret[str]
    port: int
    url: str

    def fresh_container(self, prefix: str = "") -> AzureStore:
        return self.account.container(f"test-{uuid.uuid4().hex[:12]}", prefix)

    def rclone_environment(self) -> dict[str, str]:
        """Environment that makes `az:CONTAINER` a remote of rclone."""
        return {
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_AZ_TYPE": "azureblob",
            "RCLONE_CONFIG_AZ_USE_EMULATOR": "true",
            "RCLONE_CONFIG_AZ_ENDPOINT": self.url,
        }
