"""The seed of a trip, for tests: whoever cares for a field replaces it."""

from __future__ import annotations

from diskprep.seed import Seed

SEED = Seed(
    job_name="first-backup",
    storage_account="account",
    container="container",
    subscription_id="00000000-0000-4000-8000-000000000000",
    resource_group="group",
    location="westeurope",
    hostname="host",
    sources=("/srv",),
    repository_id="ab" * 32,
    escrow_public_key="cd" * 32,
    created="2026-01-01T00:00:00Z",
)
