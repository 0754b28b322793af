"""The numbers by which rows are compared: digests for what is equal, MinHash signatures and band keys for what is near."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ft_pipeline.curate.bands import band_keys, bands_for
from ft_pipeline.curate.comparison import Comparable
from ft_pipeline.curate.signatures import signatures


def signed(whole: Sequence[str], prompts: Sequence[str], *, threshold: float) -> dict[str, np.ndarray]:
    """Signatures [rows, 128] and band keys [bands, rows] of examples and of prompts."""
    bands = bands_for(threshold)
    distinct = {text: index for index, text in enumerate(dict.fromkeys(prompts))}
    examples = signatures(whole)
    asked = signatures(list(distinct))[[distinct[p] for p in prompts]] if distinct else examples[:0]
    return {
        "whole_signatures": examples,
        "whole_bands": band_keys(examples, bands),
        "prompt_signatures": asked,
        "prompt_bands": band_keys(asked, bands),
    }


def keys_of(compared: Sequence[Comparable]) -> dict[str, np.ndarray]:
    """Digests as [rows, 2] uint64: equal when all 128 bits are."""
    asked = [hashlib.sha256(row.frame + row.prompt.encode()).digest()[:16] for row in compared]
    return {
        "exact": _words([row.exact[:16] for row in compared]),
        "frame": _words([row.frame for row in compared])[:, 0].copy(),
        "asked": _words(asked),
        "length": np.array([len(row.prompt) + len(row.response) for row in compared], np.int32),
        "has_prompt": np.array([bool(row.prompt) for row in compared], bool),
    }


def _words(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
