"""The platform's rows in one object, over the catalog's database."""

from __future__ import annotations

from dataclasses import dataclass

from ft_pipeline.settings import Settings
from ft_pipeline.store.catalog_database import open_database
from ft_pipeline.store.platform.audit import Audit
from ft_pipeline.store.platform.events import Events
from ft_pipeline.store.platform.files import Files
from ft_pipeline.store.platform.jobs import Jobs
from ft_pipeline.store.platform.keys import Keys
from ft_pipeline.store.platform.metering import Metering
from ft_pipeline.store.platform.queue import Queue
from ft_pipeline.store.platform.tenants import Tenants
from ft_pipeline.store.platform.uploads import Uploads
from ft_pipeline.store.platform.usage import Usage
from ft_pipeline.store.platform.webhooks import Webhooks


@dataclass(frozen=True)
class Records(Files, Uploads, Tenants, Keys, Audit, Usage, Jobs, Events, Queue, Metering, Webhooks):
    """Tenants, keys, files, jobs, webhooks, usage and the audit log: each in its own module of this folder."""


def open_records(settings: Settings) -> Records:
    """The records in the database of the catalog, made or brought up to date. Raises StorageError, UserError."""
    return Records(open_database(settings.catalog_url).engine)
