"""A tenant's month: training by purpose, answers, storage, what is still to come; as numbers, CSV lines and per job with its forecast's error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from ft_pipeline.billing.meter import PURPOSES, Charge, charges, total
from ft_pipeline.errors import UserError
from ft_pipeline.planning.prices import Prices
from ft_pipeline.store.platform.metering import Answered
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import TrainingJob

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class JobBill:
    """One job in a month."""

    job: TrainingJob
    charges: tuple[Charge, ...]
    estimated: float | None
    """Money that its plan said at submission; None when it could not say."""
    whole: float
    """Money of the job in all months so far."""

    @property
    def forecast_error(self) -> float | None:
        """(actual - estimated) / actual of a job that succeeded; None where nothing was forecast or it did not end so."""
        if self.estimated is None or self.job.status != "succeeded" or not self.whole:
            return None
        return (self.whole - self.estimated) / self.whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Month:
    """What a tenant used in a month (UTC) up to now."""

    tenant: str
    month: str
    """`2026-11`."""
    currency: str
    jobs: tuple[JobBill, ...]
    answers: tuple[tuple[Answered, float], ...]
    """Usage rows, each with its money."""
    stored_bytes: int
    storage: float
    """Money of the bytes that are stored now, for the part of the month that has passed."""

    @property
    def training(self) -> float:
        """Money of all jobs."""
        return sum(total(bill.charges) for bill in self.jobs)

    @property
    def serving(self) -> float:
        """Money of all answers."""
        return sum(money for _, money in self.answers)

    @property
    def spent(self) -> float:
        """Money of everything."""
        return self.training + self.serving + self.storage

    @property
    def gpu_hours(self) -> float:
        """GPU hours of all jobs."""
        return sum(c.gpu_seconds for bill in self.jobs for c in bill.charges) / 3600

    def by_purpose(self) -> dict[str, float]:
        """Purpose -> money."""
        return {p: sum(total(bill.charges, p) for bill in self.jobs) for p in PURPOSES}

    def forecast_errors(self) -> list[float]:
        """Of the jobs that were forecast and have succeeded."""
        return [e for bill in self.jobs if (e := bill.forecast_error) is not None]


def month_of(records: Records, tenant: str, *, month: str, prices: Prices, moment: str) -> Month:
    """The month of a tenant as it stands at `moment` (ISO, UTC). Raises UserError for what is no month, NotFoundError for a GPU without a price."""
    since, until = bounds(month)
    now = min(moment, until)
    touched = records.intervals(tenant=tenant, since=since, until=until)
    jobs = tuple(dict.fromkeys(i.job_id for i in touched))
    whole = records.intervals(of_jobs=jobs) if jobs else []
    steps = records.steps_of(jobs) if jobs else {}
    made = charges(touched, steps, prices=prices, since=since, until=now) if now > since else []
    all_made = charges(whole, steps, prices=prices, until=moment)
    bills = [_bill(records.job(j), _of(made, j), total(_of(all_made, j))) for j in jobs]
    answers = records.answered(tenant=tenant, first_day=since[:10], last_day=f"{month}-31")
    stored = records.stored_bytes(tenant)
    return Month(
        tenant=tenant, month=month, currency=prices.currency, jobs=tuple(bills),
        answers=tuple((a, price_of(a, prices)) for a in answers), stored_bytes=stored,
        storage=stored / GIB * prices.charges.storage_gib_month * _passed(since, until, now),
    )  # fmt: skip


def bounds(month: str) -> tuple[str, str]:
    """First moment of a month and of the next. Raises UserError."""
    try:
        first = datetime.strptime(month, "%Y-%m")
    except ValueError:
        raise UserError(f"{month!r} is not a month", cure="write it as 2026-11") from None
    following = f"{first.year + first.month // 12:04d}-{first.month % 12 + 1:02d}"
    return f"{first.year:04d}-{first.month:02d}-01T00:00:00.000000+00:00", f"{following}-01T00:00:00.000000+00:00"


def price_of(answered: Answered, prices: Prices) -> float:
    """Money of a day's answers of a model."""
    read, written = answered.prompt_tokens, answered.completion_tokens
    return (read * prices.charges.prompt_million + written * prices.charges.completion_million) / 1e6


CSV_HEAD = (
    "kind",
    "subject",
    "day",
    "purpose",
    "seconds",
    "gpu_seconds",
    "tokens_in",
    "tokens_out",
    "money",
    "currency",
)


def csv_rows(month: Month) -> Iterator[tuple[str | float | int, ...]]:
    """The month line by line, CSV_HEAD first: charges of jobs, answers of models, storage."""
    yield CSV_HEAD
    for bill in month.jobs:
        for c in bill.charges:
            yield ("job", c.job_id, c.started_at[:10], c.purpose, round(c.seconds, 3), round(c.gpu_seconds, 3), 0, 0, round(c.money, 6), month.currency)  # fmt: skip
    for a, money in month.answers:
        yield ("answers", a.model, a.day, "serve", round(a.seconds, 3), 0, a.prompt_tokens, a.completion_tokens, round(money, 6), month.currency)  # fmt: skip
    yield ("storage", "files", f"{month.month}-01", "storage", 0, 0, month.stored_bytes, 0, round(month.storage, 6), month.currency)  # fmt: skip


def _bill(job: TrainingJob, made: Sequence[Charge], whole: float) -> JobBill:
    said = job.estimate.get("money")
    return JobBill(job=job, charges=tuple(made), estimated=None if said is None else float(said), whole=whole)


def _of(made: Sequence[Charge], job_id: str) -> list[Charge]:
    return [c for c in made if c.job_id == job_id]


def _passed(since: str, until: str, now: str) -> float:
    """Share of the month that has passed."""
    first, last, here = (datetime.fromisoformat(t).timestamp() for t in (since, until, max(now, since)))
    return (here - first) / (last - first)
