"""When the rows say that the dataset is another than its owner thinks: too many rejected, for a reason or in all; too toxic; contaminated."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.examined import COUNTS, ENTRIES, FLAGS
from ft_pipeline.curate.ledger import Rows
from ft_pipeline.errors import DataError, RecipeError, UserError, did_you_mean
from ft_pipeline.recipe import Contamination, Curate

NUM_EXAMPLES = 3
ROW_BYTES = 600
"""Of one row while rows are compared, at its peak: 598 measured at 300,000 rows."""
PROCESS_BYTES = 400 << 20
"""Of a process that examines blocks of 4 MiB: 390 MiB resident seen, with personal data, quality and contamination on."""


def refuse_memory(num_rows: int, memory_gib: int) -> None:
    """Raises UserError when the keys of so many rows need more memory than FT_MEMORY_GIB: before hours are spent, not after."""
    needed = num_rows * ROW_BYTES / (1 << 30)
    if needed <= memory_gib:
        return
    raise UserError(
        f"comparing {num_rows:,} rows takes about {needed:.1f} GiB, FT_MEMORY_GIB allows {memory_gib}",
        why="Texts and signatures stay on disk, but keys and clusters of all rows are held together.",
        cure=f"set FT_MEMORY_GIB={math.ceil(needed)}, or deduplicate elsewhere and set curate.near_duplicates.policy: off (docs/data.md); "
        "what was examined is kept",
    )


def processes_within(processes: int, memory_gib: int) -> int:
    """As many processes as the memory allows, at least one."""
    return max(1, min(processes, int(memory_gib * (1 << 30) / PROCESS_BYTES)))


class _Seen:
    """Rows by reason, and the first three examples of each."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)
        self.rejected = self.total = self.fit = 0

    def add(self, rows: Rows, block: int) -> None:
        counts = rows.table.blocks[block].told(COUNTS)
        self.total += counts["rows"]
        self.fit += int((~rows.table.column_of(block, "dropped")).sum())
        for entry in _first_of_each(rows, block):
            reason = entry["reason"]
            self.rows[reason] += 1
            self.rejected += entry["action"] in ("dropped", "drop")
            if len(self.examples[reason]) < NUM_EXAMPLES:
                origin = rows.of_block(block, np.array([entry["ordinal"]]))[1][0]
                self.examples[reason].append(f"  {origin}: {reason} {entry['evidence']}")


def refuse(rows: Rows, config: Curate) -> None:
    """Raises DataError when a limit of the recipe is passed, with counts, examples and the cure; RecipeError for an unknown reason."""
    seen = _Seen()
    for block in range(len(rows.table.blocks)):
        seen.add(rows, block)
    if not seen.total:
        raise DataError("the dataset holds no rows", cure="check the program that writes it")
    for reason, limit in config.max_rejected.items():
        _refuse_reason(seen, reason, limit)
    if config.toxicity.words is not None:
        _refuse_share(seen, Reason.TOXIC, config.toxicity.max_share, field="toxicity.max_share")
    if config.contamination.policy == "fail":
        _refuse_share(seen, Reason.CONTAMINATED, 0.0, field="contamination.policy: fail")
    _refuse_all(seen, config)


def refuse_held(held: Mapping[int, Mapping[str, Any]], rows: Rows, config: Contamination) -> None:
    """Raises DataError under policy `fail` when train rows hold rows of the holdout."""
    if config.holdout != "fail" or not held:
        return
    first = list(held.items())[:NUM_EXAMPLES]
    named = zip(rows.of_fit(np.array([row for row, _ in first]))[1], (told["item"] for _, told in first), strict=True)
    raise DataError(
        f"{len(held):,} train rows hold a row of the holdout: " + ", ".join(f"{o} holds {i}" for o, i in named),
        why="The holdout would measure what was learnt by heart.",
        cure="set curate.contamination.holdout: remove, or flag to know it only",
    )


def _first_of_each(rows: Rows, block: int) -> Iterator[Mapping[str, Any]]:
    """Rejections, and the first flag of each row that drops it or that names it toxic or contaminated: a row counts once a reason."""
    for entry in rows.table.blocks[block].told(ENTRIES):
        if entry["action"] == "dropped":
            yield entry
    known: set[tuple[int, str]] = set()
    gone: set[int] = set()
    for flag in rows.table.blocks[block].told(FLAGS):
        counts = flag["action"] == "drop" or flag["reason"] in (Reason.TOXIC, Reason.CONTAMINATED)
        if counts and (flag["ordinal"], flag["reason"]) not in known:
            known.add((flag["ordinal"], flag["reason"]))
            again = flag["action"] == "drop" and flag["ordinal"] in gone
            gone.add(flag["ordinal"])
            yield {**flag, "action": "note"} if again else flag


def _refuse_reason(seen: _Seen, reason: str, limit: float) -> None:
    if reason not in set(Reason):
        raise RecipeError(f"curate.max_rejected names {reason!r}: {did_you_mean(reason, [str(r) for r in Reason])}")
    _refuse_share(seen, reason, limit, field=f"max_rejected.{reason}")


def _refuse_share(seen: _Seen, reason: str, limit: float, *, field: str) -> None:
    share = seen.rows[reason] / seen.total
    if share <= limit:
        return
    raise DataError(
        f"{share:.1%} of {seen.total:,} rows ({seen.rows[reason]:,}) for {reason}, limit {limit:.0%}\n"
        + "\n".join(seen.examples[reason]),
        why=f"The recipe allows no more (curate.{field}).",
        cure=_cure(reason),
    )


def _refuse_all(seen: _Seen, config: Curate) -> None:
    if seen.rejected <= config.max_rejected_share * seen.total and seen.fit:
        return
    counted = ", ".join(f"{reason} {count:,}" for reason, count in seen.rows.most_common())
    first = [seen.examples[reason][0] for reason, _ in seen.rows.most_common(NUM_EXAMPLES)]
    raise DataError(
        f"{seen.rejected:,} of {seen.total:,} rows ({seen.rejected / seen.total:.0%}) were rejected: {counted}\n"
        + "\n".join(first),
        why=f"At most {config.max_rejected_share:.0%} may be (curate.max_rejected_share): more says that the dataset is another than you think.",
        cure=_cure(seen.rows.most_common(1)[0][0] if seen.rows else ""),
    )


def _cure(reason: str) -> str:
    cures = {
        Reason.CONTROL_TOKEN: "set curate.control_tokens: escape, or remove these tokens from the text",
        Reason.UNKNOWN_LAYOUT: "rename the columns to messages, conversations, instruction/output, prompt/completion, "
        "prompt/chosen/rejected or text, or say in dataset.mapping which column is which",
        Reason.NOT_JSON: "save one JSON object a line",
        Reason.TOXIC: "remove these rows at the source, or raise curate.toxicity.max_share",
        Reason.CONTAMINATED: "set curate.contamination.policy: remove",
        Reason.PERSONAL_DATA: "set curate.pii.policy: redact",
    }
    return cures.get(reason, "mend the rows, or raise the limit if you know them to be bad")  # type: ignore[call-overload]
