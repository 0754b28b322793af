"""`files gc`: delete uploaded bytes that no file and no job uses any more."""

from __future__ import annotations

from dataclasses import asdict

import click

from ft_pipeline.cli.show import json_option, table


@click.group()
def files() -> None:
    """Uploaded files of the platform's tenants."""


@files.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, delete nothing.")
@json_option
def gc(*, dry_run: bool, as_json: bool) -> None:
    """Delete bytes without a living file and without a job that has not ended, and parts of uploads that have ended.

    Safe while the API serves: a blob goes inside the transaction that looked for its users.
    """
    from ft_pipeline import settings
    from ft_pipeline.store.artifacts import open_store
    from ft_pipeline.store.blobs import Blobs
    from ft_pipeline.store.platform.garbage import collect_blobs
    from ft_pipeline.store.platform.open import open_records

    where = settings.load()
    records = open_records(where)
    try:
        found = collect_blobs(records, records, Blobs(open_store(where)), dry_run=dry_run)
        if not dry_run:
            detail = {"blobs": found.blobs, "bytes": found.bytes, "uploads": found.uploads}
            records.audit(actor=where.actor, tenant=None, action="files.gc", subject="blobs", detail=detail)
    finally:
        records.close()
    table([asdict(found)], as_json=as_json, title="would go" if dry_run else "gone")
