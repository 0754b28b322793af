"""`.venv-vllm/bin/python -m ft_pipeline_tests.bench_vllm`: tokens a second of a vLLM replica on this CPU, and what a resolve costs. Prints the load.

The model is tiny (4 layers, 256 wide, float32, random weights, adapters of rank 8 on every linear layer): ratios are the point.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

# before torch is imported: threads that spin cost 10x on two cores that others use
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
from ft_pipeline_tests.serve import pool

TOKENS, PROMPT_TOKENS, ADAPTERS = 64, 32, 12
REQUESTS = {1: 6, 16: 48}
"""Concurrency -> requests."""
VERIFIED = re.compile(r"verified \S+ in (\d+) ms")


def main(root: Path) -> None:
    """One server; each mix of models at each concurrency, then the first request of adapters that it has never seen."""
    house = pool.new_pool(root)
    versions = [pool.version(house, seed, line=f"acme/line{seed}") for seed in range(ADAPTERS)]
    labels = [version.label for version in versions]
    start = time.monotonic()
    server = pool.Replica(house, FT_VLLM_SLOTS="3", FT_VLLM_ADAPTERS="4", FT_VLLM_RANK="16").start()
    print(f"ready after {time.monotonic() - start:.0f} s; load {os.getloadavg()[0]:.1f}")
    mixes = {
        "base": [house.base_model],
        "1 adapter": labels[:1],
        "2 adapters": labels[:2],
        "base + 2 adapters": [house.base_model, *labels[:2]],
    }
    try:
        for at_once in REQUESTS:
            for who, models in mixes.items():
                print(row(f"vLLM, {who}", models, at_once, partial(said, server)))
        resolves(server, labels[2:])
    finally:
        server.stop()
    embedded(house, versions[:2])


def said(server: pool.Replica, model: str, n: int) -> int:
    """The number of tokens of an answer."""
    return len(server.tokens(model, prompt(n), number=TOKENS))


def row(who: str, models: Sequence[str | None], at_once: int, answer: Callable[[Any, int], int]) -> str:
    """Of requests that go round the models; each model has answered once before."""
    for n, model in enumerate(models):
        answer(model, 1000 + n)
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        tokens = sum(threads.map(lambda n: answer(models[n % len(models)], n), range(REQUESTS[at_once])))
    return f"{who:<34} {at_once:>3} at once {tokens / (time.perf_counter() - start):8.0f} tok/s   load {os.getloadavg()[0]:.1f}"


def resolves(server: pool.Replica, labels: Sequence[str]) -> None:
    """The first answer of one token, which verifies, copies and loads, against the second."""
    first, second = [], []
    for label in labels:
        for took in (first, second):
            start = time.perf_counter()
            server.tokens(label, prompt(len(took)), number=1)
            took.append(1e3 * (time.perf_counter() - start))
    verified = [int(ms) for ms in VERIFIED.findall(server.log.read_text())]
    print(
        f"{len(labels)} adapters, first request {statistics.median(first):.0f} ms (max {max(first):.0f}), second {statistics.median(second):.0f} ms; "
        f"of it in the resolver {statistics.median(verified[1:]):.0f} ms (max {max(verified[1:])}; the very first, which opens the catalog, {verified[0]})"
    )


def embedded(house: pool.Pool, versions: Sequence[Any]) -> None:
    """The embedded server with the same base, adapters and prompts."""
    from ft_pipeline.serve.engine import Generation
    from ft_pipeline.serve.local import PeftServer

    server = PeftServer(house.base)
    for version in versions:
        server.add(house.store.fetch(house.catalog.ref(version.adapter_digest)))
    keys = [None, *(version.adapter_digest for version in versions)]

    def answer(key: str | None, n: int) -> int:
        text = "".join(chr(97 + (n + i) % 26) for i in range(PROMPT_TOKENS))
        pieces = list(server.answer(Generation(model="m", prompt=text, max_tokens=TOKENS), key))
        return pieces[-1].completion_tokens

    for at_once in REQUESTS:
        print(row("embedded, base + 2 adapters", keys, at_once, answer))
    server.close()


def prompt(number: int) -> list[int]:
    """Token ids; no two start alike, so that no prompt is in a cache."""
    return [10 + number % 370, *(10 + (number // 370 + 7 * i) % 370 for i in range(1, PROMPT_TOKENS))]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-vllm-") as folder:
        main(Path(folder))
