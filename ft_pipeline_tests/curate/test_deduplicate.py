"""Duplicates and clusters against brute force over all pairs."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft_pipeline.curate.comparison import comparable
from ft_pipeline.curate.deduplicate import find_duplicates
from ft_pipeline.curate.edges import RELATIONS
from ft_pipeline.curate.signatures import jaccard, shingles
from ft_pipeline.workers.pool import Pool
from ft_pipeline_tests.compared import table_of

WORDS = ["which", "module", "reads", "the", "zip", "archives", "and", "writes", "json", "over", "a", "socket", "in"]


def completion(number, prompt, answer):
    return number, comparable("completion", {"prompt": prompt, "completion": answer})


@pytest.fixture
def search(tmp_path):
    """Writes rows as blocks and searches them."""
    count = itertools.count()

    def find(rows, policy, threshold=0.9, **options):
        workforce = options.pop("workforce", Pool(1))
        table = table_of(rows, tmp_path / str(next(count)), threshold=threshold, **options)
        return find_duplicates(table, policy, threshold, workforce=workforce)

    return find


def dropped_of(rows, found):
    return {rows[i][0] for i in np.flatnonzero((found.exact >= 0) | (found.near >= 0)).tolist()}


def clusters_of(rows, found):
    return {rows[i][0]: rows[c][0] for i, c in enumerate(found.cluster.tolist()) if c >= 0}


def edges_of(rows, found):
    pairs = found.edges.pairs
    named = zip(found.edges.relation.tolist(), pairs.left.tolist(), pairs.right.tolist(), strict=True)
    return [(RELATIONS[r], rows[a][0], rows[b][0]) for r, a, b in named]


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
        rows.append((i, prompt, answer))
    return [completion(i, " ".join(p), " ".join(a)) for i, p, a in rows]


def brute_force(rows, policy):
    """Number of groups of duplicates, and clusters as sets of rows, over all pairs."""
    unique = list({r.exact: (n, r) for n, r in sorted(rows, key=lambda r: r[0], reverse=True)}.values())
    same, cluster = list(range(len(unique))), list(range(len(unique)))

    def root(parent, i):
        while parent[i] != i:
            i = parent[i]
        return i

    for i, (_, a) in enumerate(unique):
        for k in range(i + 1, len(unique)):
            b = unique[k][1]
            whole, prompt, response = (
                jaccard(shingles(getattr(a, part)), shingles(getattr(b, part)))
                for part in ("whole", "prompt", "response")
            )
            if (whole if policy == "whole_example" else min(prompt, response)) >= 0.9:
                same[root(same, k)] = root(same, i)
            if max(whole, prompt) >= 0.9:
                cluster[root(cluster, k)] = root(cluster, i)
    groups: dict[int, set[int]] = {}
    for i, (number, _) in enumerate(unique):
        groups.setdefault(root(cluster, i), set()).add(number)
    return len({root(same, i) for i in range(len(unique))}), {frozenset(g) for g in groups.values()}


@pytest.mark.parametrize("policy", ["prompt_and_response", "whole_example"])
@pytest.mark.parametrize("seed", range(5))
def test_result_is_brute_force(search, policy, seed):
    rows = edited(seed)
    found = search(rows, policy)
    groups, clusters = brute_force(rows, policy)
    assert len(rows) - len(dropped_of(rows, found)) == groups
    named: dict[int, set[int]] = {}
    for number, cluster in clusters_of(rows, found).items():
        named.setdefault(cluster, set()).add(number)
    assert {frozenset(members) for members in named.values()} == clusters
    assert all(cluster == min(members) for cluster, members in named.items())


@pytest.mark.parametrize("seed", range(3))
def test_the_edges_alone_give_the_clusters_again(search, seed):
    rows = edited(seed)
    found = search(rows, "prompt_and_response")
    group = {number: number for number, _ in rows}

    def root(number):
        while group[number] != number:
            number = group[number]
        return number

    for _, left, right in edges_of(rows, found):
        group[root(right)] = root(left)
    by_prompt: dict[str, int] = {}
    for number, row in rows:
        group[root(number)] = root(by_prompt.setdefault(row.prompt, number))
    clusters = clusters_of(rows, found)
    assert all((root(a) == root(b)) == (clusters[a] == clusters[b]) for a in clusters for b in clusters)


def test_every_dropped_row_names_an_edge_of_its_own_to_a_duplicate(search):
    rows = edited(1)
    found = search(rows, "prompt_and_response")
    near = np.flatnonzero(found.near >= 0)
    assert len(near) > 5
    for row in near.tolist():
        edge = int(found.edge[row])
        assert found.edges.relation[edge] == 0
        assert row in (found.edges.pairs.left[edge], found.edges.pairs.right[edge])


def test_the_better_then_the_longer_row_is_kept_whatever_the_order(search):
    text = " ".join(WORDS * 3)
    rows = [completion(1, text, text), completion(2, text, text + " now"), completion(3, text.upper(), text)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        shuffled = [rows[i] for i in order]
        assert dropped_of(shuffled, search(shuffled, "prompt_and_response")) == {1, 3}
    assert dropped_of(rows, search(rows, "prompt_and_response", scores=[0.5, 0.5, 1.0])) == {1, 2}
    assert dropped_of(rows, search(rows, "prompt_and_response", scores=[1.0, 0.5, 0.5])) == {2, 3}
    found = search(rows, "prompt_and_response")
    edge = int(found.edge[0])
    assert found.edges.pairs.prompt[edge] == 1.0 and 0.9 <= found.edges.pairs.response[edge] < 1.0


def test_equal_prompts_with_unlike_answers_are_a_conflict_and_both_stay(search):
    rows = [completion(1, "what is mentioned last?", "a fox"), completion(2, "What is mentioned  last?", "the dog")]
    found = search(rows, "prompt_and_response")
    assert not dropped_of(rows, found)
    assert found.conflict_prompts == 1
    assert edges_of(rows, found) == [("conflict", 2, 1)]
    assert set(clusters_of(rows, found).values()) == {1}


def test_off_drops_no_near_duplicate_but_still_ties_clusters(search):
    text = " ".join(WORDS * 3)
    rows = [completion(1, text, text), completion(2, text, text + " now"), completion(3, text, text)]
    found = search(rows, "off")
    assert dropped_of(rows, found) == {3}
    assert set(clusters_of(rows, found).values()) == {1}


def test_whole_example_counts_the_answers_it_loses(search):
    text = " ".join(f"{word} {i}" for i, word in enumerate(WORDS * 20))
    rows = [completion(1, text, "first"), completion(2, text, "last of all")]
    assert search(rows, "whole_example").answers_lost == 1
    assert not dropped_of(rows, search(rows, "prompt_and_response"))


def test_other_tools_make_another_row(search):
    def chat(number, tool):
        messages = [
            {"role": "user", "content": "what is the weather?"},
            {"role": "assistant", "content": "sunny, I think"},
        ]
        tools = [{"type": "function", "function": {"name": tool}}]
        return number, comparable("chat", {"messages": messages, "tools": tools})

    rows = [chat(1, "weather"), chat(2, "forecast"), chat(3, "weather")]
    found = search(rows, "prompt_and_response")
    assert dropped_of(rows, found) == {3}
    assert set(clusters_of(rows, found).values()) == {1}


def test_the_order_of_turns_and_the_label_make_another_row():
    def exact(*turns):
        return comparable("chat", {"messages": [dict(zip(("role", "content"), t, strict=True)) for t in turns]}).exact

    ask, tell = ("user", "a"), ("assistant", "b")
    assert exact(ask, tell) == exact(("user", " A "), tell)
    assert exact(ask, tell, ("tool", "x"), tell) != exact(ask, ("tool", "x"), tell, tell)
    kto = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    assert comparable("kto", kto | {"label": True}).frame != comparable("kto", kto | {"label": False}).frame
    steps = {"prompt": kto["prompt"], "steps": ["b", "c"], "labels": [True, False]}
    assert comparable("stepwise", steps).frame != comparable("stepwise", steps | {"labels": [True, True]}).frame
    assert comparable("stepwise", steps).exact != comparable("stepwise", steps | {"steps": ["b c", ""]}).exact
    assert comparable("stepwise", steps).whole == "a\nb c"


def test_plain_texts_are_compared_as_wholes(search):
    text = " ".join(WORDS * 4)
    texts = [text, text + " now", "something else altogether", "a third thing"]
    rows = [(n, comparable("text", {"text": t})) for n, t in enumerate(texts)]
    found = search(rows, "prompt_and_response")
    assert dropped_of(rows, found) == {0}
    assert len(set(clusters_of(rows, found).values())) == 3
    assert found.conflict_prompts == 0


def test_rows_that_a_filter_drops_stand_for_no_other(search, tmp_path):
    text = " ".join(WORDS * 3)
    rows = [completion(1, text, text + " and more"), completion(2, text, text)]
    table = table_of(rows, tmp_path / "t")
    table.column("dropped")[0] = True
    found = find_duplicates(table, "prompt_and_response", 0.9)
    assert not dropped_of(rows, found) and clusters_of(rows, found) == {2: 2}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.randoms(), st.integers(1, 40))
def test_neither_order_nor_blocks_change_anything(search, seed, rng, block_rows):
    rows = edited(seed, 30)
    shuffled = rng.sample(rows, len(rows))
    before = search(rows, "prompt_and_response")
    after = search(shuffled, "prompt_and_response", block_rows=block_rows)
    assert dropped_of(rows, before) == dropped_of(shuffled, after)
    assert clusters_of(rows, before) == clusters_of(shuffled, after)
    assert edges_of(rows, before) == edges_of(shuffled, after)


@pytest.mark.slow
def test_four_processes_find_what_one_finds(search, monkeypatch):
    monkeypatch.setattr("ft_pipeline.curate.deduplicate.FEW_PAIRS", 0)
    monkeypatch.setattr("ft_pipeline.curate.deduplicate.TASK_PAIRS", 50)
    rows = [row for seed in range(4) for row in edited(seed, 100)]
    rows = [(n, row) for n, (_, row) in enumerate(rows)]
    one, four = (search(rows, "prompt_and_response", workforce=Pool(n), block_rows=33) for n in (1, 4))
    for name in ("exact", "near", "edge", "cluster"):
        assert np.array_equal(getattr(one, name), getattr(four, name)), name
    assert edges_of(rows, one) == edges_of(rows, four)
    assert np.array_equal(one.edges.pairs.prompt, four.edges.pairs.prompt, equal_nan=True)


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(search, count):
    rows = [completion(1, "a", "b")][:count]
    assert clusters_of(rows, search(rows, "prompt_and_response")) == ({1: 1} if count else {})


def edited_text(text: str, rng: random.Random) -> str:
    """A few characters exchanged: Jaccard .85 to .99 at 400 characters."""
    letters = list(text)
    for _ in range(rng.randint(1, 6)):
        letters[rng.randrange(len(letters))] = rng.choice("abcdefgh")
    return "".join(letters)


@pytest.mark.slow
def test_recall_and_precision_are_one_on_four_thousand_rows(search):
    """Against all 8 M pairs: shared 5-grams as a product of sparse matrices over a dictionary, no hash in it."""
    from scipy.sparse import csr_array

    rng = random.Random(8)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, k=rng.randint(40, 90))) for _ in range(3000)]
    texts += [edited_text(rng.choice(texts[:3000]), rng) for _ in range(1000)]
    rows = [(n, comparable("text", {"text": text})) for n, text in enumerate(texts)]
    found = search(rows, "whole_example", block_rows=1000)
    numbers: dict[str, int] = {}
    sets = [sorted({numbers.setdefault(s, len(numbers)) for s in shingles(row.response)}) for _, row in rows]
    sizes = np.array([len(s) for s in sets])
    starts, columns = np.r_[0, np.cumsum(sizes)], np.concatenate([np.array(s) for s in sets])
    matrix = csr_array((np.ones(len(columns), np.int32), columns, starts), shape=(len(rows), len(numbers)))
    shared = (matrix @ matrix.T).tocoo()
    likeness = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    near = (likeness >= 0.9) & (shared.row < shared.col)
    expected = set(zip(shared.row[near].tolist(), shared.col[near].tolist(), strict=True))
    exact = {(i, int(k)) for i, k in enumerate(found.exact.tolist()) if k >= 0}
    same = {tuple(sorted(pair)) for pair in exact}
    duplicates = found.edges.part(found.edges.relation == 0).pairs
    pairs = {tuple(sorted(p)) for p in zip(duplicates.left.tolist(), duplicates.right.tolist(), strict=True)}
    # an exact duplicate stands in for its twin: pairs with it are known by the twin's
    gone = {i for i, _ in exact}
    assert pairs | same == {p for p in expected if not gone & set(p)} | same
    assert len(pairs) > 500 and all((min(a, b), max(a, b)) in expected for a, b in pairs)
