"""Duplicates and clusters against brute force over all pairs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.curate.comparison import comparable
from ft_pipeline.curate.deduplicate import find_duplicates
from ft_pipeline.curate.signatures import jaccard, shingles

WORDS = ["which", "module", "reads", "the", "zip", "archives", "and", "writes", "json", "over", "a", "socket", "in"]


def completion(row_id, prompt, answer):
    return comparable(row_id, "completion", {"prompt": prompt, "completion": answer})


def edited(seed: int, count: int = 60):
    """Rows with planted exact and near duplicates, of 30 words each side."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        prompt, answer = [rng.choice(WORDS) for _ in range(40)], [rng.choice(WORDS) for _ in range(40)]
        if rows and rng.random() < 0.6:
            prompt, answer = (list(part) for part in rng.choice(rows)[1:])
            for part in rng.choice([(), (prompt,), (answer,), (prompt, answer)]):
                for _ in range(rng.choice([1, 1, 2, 9])):
                    part[rng.randrange(40)] = rng.choice(WORDS)
        rows.append((f"r{i:04d}", prompt, answer))
    return [completion(i, " ".join(p), " ".join(a)) for i, p, a in rows]


def brute_force(rows, policy):
    """Number of groups of duplicates, and clusters as sets of row ids, over all pairs."""
    unique = list({r.exact: r for r in sorted(rows, key=lambda r: r.row_id, reverse=True)}.values())
    same, cluster = list(range(len(unique))), list(range(len(unique)))

    def root(parent, i):
        while parent[i] != i:
            i = parent[i]
        return i

    for i, a in enumerate(unique):
        for k in range(i + 1, len(unique)):
            b = unique[k]
            whole, prompt, response = (
                jaccard(shingles(getattr(a, part)), shingles(getattr(b, part)))
                for part in ("whole", "prompt", "response")
            )
            if (whole if policy == "whole_example" else min(prompt, response)) >= 0.9:
                same[root(same, k)] = root(same, i)
            if max(whole, prompt) >= 0.9:
                cluster[root(cluster, k)] = root(cluster, i)
    groups: dict[int, set[str]] = {}
    for i, row in enumerate(unique):
        groups.setdefault(root(cluster, i), set()).add(row.row_id)
    return len({root(same, i) for i in range(len(unique))}), {frozenset(g) for g in groups.values()}


@pytest.mark.parametrize("policy", ["prompt_and_response", "whole_example"])
@pytest.mark.parametrize("seed", range(5))
def test_result_is_brute_force(policy, seed):
    rows = edited(seed)
    found = find_duplicates(rows, policy, 0.9)
    groups, clusters = brute_force(rows, policy)
    assert len(rows) - len(found.exact) - len(found.near) == groups
    named: dict[str, set[str]] = {}
    for index, cluster in found.clusters.items():
        named.setdefault(cluster, set()).add(rows[index].row_id)
    assert {frozenset(members) for members in named.values()} == clusters
    assert all(cluster == min(members) for cluster, members in named.items())


def test_the_longer_row_is_kept_whatever_the_order():
    text = " ".join(WORDS * 3)
    rows = [completion("ra", text, text), completion("rb", text, text + " now"), completion("rc", text.upper(), text)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        shuffled = [rows[i] for i in order]
        found = find_duplicates(shuffled, "prompt_and_response", 0.9)
        dropped = {shuffled[i].row_id for i in [*found.exact, *found.near]}
        assert dropped == {"ra", "rc"}
    edge = next(iter(found.near.values()))[1]
    assert edge.relation == "duplicate" and edge.prompt_j == 1.0 and 0.9 <= edge.response_j < 1.0


def test_equal_prompts_with_unlike_answers_are_a_conflict_and_both_stay():
    rows = [
        completion("ra", "what is mentioned last?", "a fox"),
        completion("rb", "What is mentioned  last?", "the dog"),
    ]
    found = find_duplicates(rows, "prompt_and_response", 0.9)
    assert not found.near and not found.exact
    assert found.conflict_prompts == 1
    assert [(e.relation, e.kept_id, e.other_id) for e in found.edges] == [("conflict", "rb", "ra")]
    assert len(set(found.clusters.values())) == 1


def test_off_drops_no_near_duplicate_but_still_ties_clusters():
    text = " ".join(WORDS * 3)
    rows = [completion("ra", text, text), completion("rb", text, text + " now"), completion("rc", text, text)]
    found = find_duplicates(rows, "off", 0.9)
    assert len(found.exact) == 1 and not found.near
    assert set(found.clusters.values()) == {"ra"}


def test_whole_example_counts_the_answers_it_loses():
    text = " ".join(f"{word} {i}" for i, word in enumerate(WORDS * 20))
    rows = [completion("ra", text, "first"), completion("rb", text, "last of all")]
    assert find_duplicates(rows, "whole_example", 0.9).answers_lost == 1
    assert not find_duplicates(rows, "prompt_and_response", 0.9).near


def test_other_tools_make_another_row():
    def chat(row_id, tool):
        messages = [
            {"role": "user", "content": "what is the weather?"},
            {"role": "assistant", "content": "sunny, I think"},
        ]
        tools = [{"type": "function", "function": {"name": tool}}]
        return comparable(row_id, "chat", {"messages": messages, "tools": tools})

    rows = [chat("ra", "weather"), chat("rb", "forecast"), chat("rc", "weather")]
    found = find_duplicates(rows, "prompt_and_response", 0.9)
    assert list(found.exact) == [2] and not found.near
    assert set(found.clusters.values()) == {"ra"}


def test_plain_texts_are_compared_as_wholes():
    text = " ".join(WORDS * 4)
    texts = [text, text + " now", "something else altogether", "a third thing"]
    rows = [comparable(f"r{i}", "text", {"text": t}) for i, t in enumerate(texts)]
    found = find_duplicates(rows, "prompt_and_response", 0.9)
    assert list(found.near) == [0]
    assert len(set(found.clusters.values())) == 3
    assert found.conflict_prompts == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.randoms())
def test_shuffling_changes_nothing(seed, rng):
    rows = edited(seed, 30)
    shuffled = rng.sample(rows, len(rows))
    before, after = (find_duplicates(r, "prompt_and_response", 0.9) for r in (rows, shuffled))
    assert {rows[i].row_id for i in [*before.exact, *before.near]} == {
        shuffled[i].row_id for i in [*after.exact, *after.near]
    }
    assert {rows[i].row_id: c for i, c in before.clusters.items()} == {
        shuffled[i].row_id: c for i, c in after.clusters.items()
    }


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(count):
    found = find_duplicates([completion("ra", "a", "b")][:count], "prompt_and_response", 0.9)
    assert found.clusters == ({0: "ra"} if count else {})
