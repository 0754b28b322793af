"""Whether the server says to the model what training said: real rows of the shards, asked for as a client would ask, token by token.

The server renders the prompt of a row with the adapter's own tokenizer and template; it must be the ids that the adapter was trained
on, up to where the answer begins. A template that was edited, a special token that moved, another release of a library or a
tokenizer that adds a token are found here, before anybody is answered. No torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ft_pipeline.encode.artifact import (
    Labelled,
    Pair,
    Stepwise,
    example_kind,
    read_labelled,
    read_pairs,
    read_prompts,
    read_stepwise,
    read_windows,
    shard_names,
)
from ft_pipeline.errors import IntegrityError
from ft_pipeline.serve.engine import BadRequest, Generation
from ft_pipeline.serve.prompts import prompt_tokens
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Manifest, Ref

ROWS = 5
"""Compared. A template that differs does so in the first."""
LOOKED_AT = 64
"""From which they are taken: the beginning of the first shard."""
ASKED = frozenset(("role", "content", "name", "tool_calls", "tool_call_id", "weight"))
"""What a request can say of a message, and the weight of a row's turn, which no request has."""
ROUND = 24
"""Tokens around a difference that the error shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """What was compared and found equal; empty counts and a reason when nothing could be."""

    rows: int = 0
    tokens: int = 0
    left_out: Mapping[str, int]
    """Why rows were not compared -> how many."""
    why_not: str = ""

    @property
    def told(self) -> str:
        """For the record of a deployment."""
        rest = "; ".join(f"{count} left out: {why}" for why, count in sorted(self.left_out.items()))
        said = f"{self.rows} rows, {self.tokens} tokens equal" if self.rows else f"not checked: {self.why_not}"
        return said + (f" ({rest})" if rest else "")


_equal: dict[str, Parity] = {}
"""Digest of an adapter -> what was found: its bytes, and those of its rows, never change."""


def require_parity(adapter: Ref, label: str, store: Store) -> Parity:
    """Compares once a process and adapter. Raises IntegrityError naming the first token that differs, with both texts."""
    if adapter.digest not in _equal:
        _equal[adapter.digest] = _compared(adapter, label, store)
    return _equal[adapter.digest]


def _compared(adapter: Ref, label: str, store: Store) -> Parity:
    manifest = store.recorded(adapter)
    shards = _shards_of(manifest, store)
    if shards is None or not shard_names(shards, "train"):
        return Parity(left_out={}, why_not="the model names no rows that it was trained on")
    if not any(name.startswith("tokenizer") for name in manifest.files):
        return Parity(left_out={}, why_not="the model carries no tokenizer")
    try:
        tokenizer = _tokenizer(store.fetch(adapter))
    except ModuleNotFoundError as error:  # a code location may do without; the server that answers has it, and compares
        return Parity(left_out={}, why_not=f"{error.name} is not installed here; the server compares when it loads it")
    trained = _trained(shards)
    left_out: Counter[str] = Counter()
    rows = tokens = 0
    for row_id, row in _contents(shards.manifest, trained, store).items():
        if rows == ROWS:
            break
        asked = _asked(row["shape"], json.loads(row["content"]))
        said = asked if isinstance(asked, str) else _served(tokenizer, asked)
        if isinstance(said, str):
            left_out[said] += 1
            continue
        tokens += _require_equal(tokenizer, said, trained[row_id], where=f"{label}, row {row_id}")
        rows += 1
    return Parity(rows=rows, tokens=tokens, left_out=left_out, why_not="none of the first rows can be asked for")


def _shards_of(manifest: Manifest, store: Store) -> Artifact | None:
    """The nearest shards above a model, with the first file of the train split local and verified."""
    level = [manifest]
    while level:
        for found in level:
            if "shards" in found.parents:
                shards = store.recorded(found.parents["shards"])
                names = sorted(n for n in shards.files if n.startswith("train-") and n.endswith(".parquet"))
                first = store.fetch_file(shards.ref, names[0]) if names else None
                return Artifact(shards, first.parent) if first else None
        level = [store.recorded(ref) for found in level for ref in found.parents.values()]
    return None


def _tokenizer(adapter: Artifact) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(adapter.folder, local_files_only=True)


@dataclass(frozen=True, slots=True)
class _Row:
    """What training reads of a row: its ids, and at which of them the last answer begins."""

    ids: Sequence[int]
    begins: int


def _trained(shards: Artifact) -> dict[str, _Row]:
    """Row id -> the first rows of the shards: a whole row of a window, or a prompt and what follows."""
    kind = example_kind(shards)
    if kind is None:
        return dict(islice(_of_windows(shards), LOOKED_AT))
    if kind is Pair:
        read: Iterator[Any] = ((p, p.chosen_ids) for p in read_pairs(shards, "train"))
    elif kind is Labelled:
        read = ((p, p.completion_ids) for p in read_labelled(shards, "train"))
    elif kind is Stepwise:
        read = ((p, p.completion_ids) for p in read_stepwise(shards, "train"))
    else:
        read = ((p, ()) for p in read_prompts(shards, "train"))
    return {p.row_id: _Row([*p.prompt_ids, *rest], len(p.prompt_ids)) for p, rest in islice(read, LOOKED_AT)}


def _of_windows(shards: Artifact) -> Iterator[tuple[str, _Row]]:
    """Rows of windows. The pieces of a row that was split carry one id: such a row is left out, its beginning may be elsewhere."""
    for window in read_windows(shards, "train"):
        start, often = 0, Counter(window.row_ids)
        for row_id, length in zip(window.row_ids, window.lengths, strict=True):
            if often[row_id] == 1:
                begins = max((a - start for a, _ in window.spans if start <= a < start + length), default=0)
                yield row_id, _Row(window.ids[start : start + length].tolist(), begins)
            start += length


def _contents(shards: Manifest, wanted: Mapping[str, Any], store: Store) -> dict[str, dict[str, Any]]:
    """Row id -> its row in the curated dataset, in the order of `wanted`; rows that were split in several pieces left out."""
    import polars as pl

    ids = pl.lit(pl.Series(list(wanted))).implode()
    path = store.fetch_file(shards.parents["curated"], "train.parquet")
    rows = pl.scan_parquet(path).filter(pl.col("row_id").is_in(ids)).select("row_id", "shape", "content").collect()
    found = {row["row_id"]: row for row in rows.to_dicts()}
    split: set[str] = set()
    if "rows.parquet" in shards.files:
        places = pl.scan_parquet(store.fetch_file(shards.ref, "rows.parquet"))
        later = places.filter((pl.col("piece") > 0) & pl.col("row_id").is_in(ids)).select("row_id").collect()
        split = set(later["row_id"])
    return {row_id: found[row_id] for row_id in wanted if row_id in found and row_id not in split}


def _asked(shape: str, content: Mapping[str, Any]) -> Any:
    """What a client would send for a row: messages up to the last answer, or a text; in words why it cannot."""
    if shape in ("text", "completion"):
        return {"text": content["text" if shape == "text" else "prompt"]}
    if shape == "chat":
        said = [place for place, m in enumerate(content["messages"]) if m["role"] == "assistant"]
        prompt = content["messages"][: said[-1]] if said else []
    else:
        prompt = content["prompt"]
    if isinstance(prompt, str):
        return {"text": prompt}
    if not prompt:
        return "nothing stands before the answer"
    if content.get("tools"):
        return "it lists tools, which this server takes from nobody"
    if any(set(m) - ASKED for m in prompt):
        return "a turn before the answer holds what no request can"
    return {"messages": tuple({k: v for k, v in m.items() if k != "weight"} for m in prompt)}


def _served(tokenizer: Any, asked: Mapping[str, Any]) -> list[int] | str:
    """The ids that the server would give the model; in words why it would refuse."""
    try:
        return prompt_tokens(tokenizer, Generation(model="", prompt=asked.get("messages") or asked["text"]))
    except BadRequest as error:
        return f"the server refuses it ({error.what})"


def _require_equal(tokenizer: Any, served: Sequence[int], row: _Row, *, where: str) -> int:
    """How many tokens are equal. A token that straddles the border between prompt and answer ends the comparison and is no fault:
    the prompt's text is whole before it, and no request can hold half a token. Raises IntegrityError.
    """
    trained, length = row.ids, min(len(served), len(row.ids))
    first = next((n for n in range(length) if served[n] != trained[n]), length)
    if first == len(trained) or (first == len(served) and first >= row.begins):
        return first
    if first < len(served) and _straddles(tokenizer, (served, trained), first):
        return first
    raise IntegrityError(
        f"{where}: token {first} of the prompt is {_token(tokenizer, trained[first])} in training and"
        f" {_token(tokenizer, served[first]) if first < len(served) else 'not there'} on the server",
        why="The adapter was measured on the tokens that it was trained on; other ones make fluent answers that nobody measured.\n"
        f"training: {_text(tokenizer, trained, first)}\nserver:   {_text(tokenizer, served, first)}",
        cure="serve it with the tokenizer, chat template and library releases that it was trained with, or run its recipe again",
    )


def _straddles(tokenizer: Any, both: tuple[Sequence[int], Sequence[int]], first: int) -> bool:
    """True when the training token there holds the prompt's last characters and more."""
    served, trained = both
    prompt, upto = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (served, trained[: first + 1]))
    return len(upto) > len(prompt) and upto.startswith(prompt)


def _token(tokenizer: Any, token: int) -> str:
    return f"{token} {tokenizer.decode([token], clean_up_tokenization_spaces=False)!r}"


def _text(tokenizer: Any, ids: Sequence[int], first: int) -> str:
    return repr(tokenizer.decode(ids[max(0, first - ROUND) : first + ROUND], clean_up_tokenization_spaces=False))
