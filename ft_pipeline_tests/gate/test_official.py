"""Official benchmarks: built from mirrors, scored as lm-evaluation-harness scores them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ft_pipeline.acquire import mirror
from ft_pipeline.curate.artifact import item_sha256
from ft_pipeline.errors import DriftError, IntegrityError
from ft_pipeline.gate import official, written
from ft_pipeline.gate.artifact import read_report
from ft_pipeline.gate.baseline import baseline_spec
from ft_pipeline.gate.benchmarks import read_questions
from ft_pipeline.gate.probes.benchmark import benchmark_probe
from ft_pipeline.recipe import BenchmarkGate
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Ref
from ft_pipeline_tests.gate import harness, mirrors

pytestmark = pytest.mark.slow
"""Whoever builds imports lm_eval: 6 s."""
CHOSEN = ("mmlu", "hellaswag", "arc_challenge", "truthfulqa_mc1", "truthfulqa_mc2")


@pytest.fixture
def built(home: Settings, store: Store, tmp_path: Path) -> Callable[..., Artifact]:
    """Builds the suite of a benchmark from a look-alike's mirror."""

    def made(task: str, **options) -> Artifact:
        source, look = tmp_path / "repositories" / task, options.pop("look", {})
        if not source.is_dir():
            mirrors.MADE[task](source, **look)
        found = mirror.fetch(official.OFFICIAL[task].repo, settings=home, store=store, source=str(source))
        only = options.pop("only", mirrors.SUBJECTS if task == "mmlu" else ())
        return official.build(store, task, mirror=found.ref, only=only, **options)

    return made


def mirror_of_rows(suite: Artifact) -> Path:
    return next(p for p in suite.folder.parents[2].rglob("anatomy/test-*.parquet"))


def mirror_of(store: Store, suite: Artifact) -> Path:
    return store.fetch(suite.manifest.parents["mirror"]).folder / official.MIRROR_FILES


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return harness.trained(tmp_path_factory.mktemp("trained") / "model", positions=4096)


def rows(suite: Artifact) -> list[dict]:
    return [json.loads(line) for line in suite.file("suite.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize(("task", "positions"), [
    *((task, 4096) for task in CHOSEN), ("hellaswag", 640), ("mmlu", 384),
])  # fmt: skip
def test_every_score_is_the_one_of_lm_eval(built, store, trained, task, positions, monkeypatch) -> None:
    """Fewer positions than a prompt has tokens: some are cut on the left, and cut as lm_eval cuts them."""
    model, tokenizer = trained
    monkeypatch.setattr(model.config, "max_position_embeddings", positions)
    suite = built(task, look={"rows": 6})
    theirs = harness.evaluated(model, tokenizer, task, mirror_of(store, suite))
    mine = harness.ours(model, tokenizer, read_questions(suite))
    assert mine.keys() == theirs.keys() and len(mine) == suite.manifest.counts["rows"]
    for name, (sums, score) in theirs.items():
        assert mine[name][0] == pytest.approx(sums, abs=1e-4), name
        assert mine[name][1] == pytest.approx(score, abs=1e-4 if task == "truthfulqa_mc2" else 0), name


def test_a_written_answer_is_read_as_lm_eval_reads_it(built, store, trained) -> None:
    suite = built("gsm8k", look={"rows": 6})
    exercises, rules = written.read_exercises(suite)
    answers = [
        "#### 12",
        "so 3 + 4 = $1,007.",
        "nothing",
        "-5 then 6.",
        "it is 18. \n\nQuestion: 99",
        exercises[5].target,
    ]
    judged = harness.judged(
        "gsm8k", mirror_of(store, suite), dict(zip([e.id for e in exercises], answers, strict=True))
    )
    assert [
        written.is_right(written.cut(a, rules), e.target, rules) for e, a in zip(exercises, answers, strict=True)
    ] == judged
    assert judged[5] is True and judged[2] is False


def test_a_written_benchmark_is_a_probe_and_stops_where_its_rules_say(built, trained) -> None:
    model, tokenizer = trained
    probe = benchmark_probe("sums", built("gsm8k", look={"rows": 3}), tokenizer)
    samples = probe.answer(model, [2, 0], lambda *_: None)
    assert [s.id for s in samples] == [probe.ids[2], probe.ids[0]] and {s.score for s in samples} <= {0.0, 1.0}
    assert all("Question:" not in s.output for s in samples) and samples[0].reference.count("####") == 1


def test_repeated_documents_are_questions_of_their_own_and_strata_are_subjects(built) -> None:
    """Trap 7: MMLU holds 27 documents twice."""
    questions = read_questions(built("mmlu"))
    twice = [q for q in questions if q.id.endswith("/1")]
    assert len({q.id for q in questions}) == len(questions) == 36
    assert sorted({q.stratum for q in twice}) == sorted(mirrors.SUBJECTS) and len(twice) == 3
    first = next(q for q in questions if q.id == twice[0].id[:-1] + "0")
    assert (first.context, first.answer) == (twice[0].context, twice[0].answer)


def test_examples_are_the_first_of_the_split_whatever_else_is_asked(built, store, tmp_path) -> None:
    """Traps 2 and 5: lm_eval's own sampler advances with every question, and fewshot_indices are ignored."""
    import pyarrow.parquet as pq

    questions = read_questions(built("arc_challenge"))
    assert len({q.prefix for q in questions}) == 1
    train = pq.read_table(
        tmp_path / "repositories/arc_challenge/ARC-Challenge/train-00000-of-00001.parquet"
    ).to_pylist()
    wanted = [
        f"Question: {r['question']}\nAnswer: {r['choices']['text'][r['choices']['label'].index(r['answerKey'])]}\n\n"
        for r in train[:25]
    ]
    assert questions[0].prefix == "".join(wanted)
    subject = read_questions(built("mmlu", only=("virology",)))
    assert subject == [q for q in read_questions(built("mmlu")) if q.stratum == "virology"]


def test_another_number_of_examples_is_another_suite_and_not_a_cached_one(built, store) -> None:
    """Trap 3: lm_eval's request cache gives the prompts of an earlier setting."""
    usual, none = built("arc_challenge"), built("arc_challenge", shots=0)
    assert usual.ref != none.ref and {q.prefix for q in read_questions(none)} == {""}
    assert built("arc_challenge").ref == usual.ref
    assert [r["doc_hash"] for r in rows(usual)] == [r["doc_hash"] for r in rows(none)]


def test_a_question_keeps_its_name_in_any_order_of_the_dataset(built, home, store, tmp_path) -> None:
    """Trap 1: lm_eval's `samples=[6, 1, 3]` labels documents by the list's order and not by what they are."""
    import pyarrow.parquet as pq

    before = {r["id"]: (r["context"], r["answer"]) for r in rows(built("hellaswag"))}
    path = tmp_path / "repositories/hellaswag/default/validation-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    assert {r["id"]: (r["context"], r["answer"]) for r in rows(built("hellaswag"))} == before


def test_a_baseline_is_never_another_model_s(built, store) -> None:
    """Trap 4: lm_eval's `use_cache` leaves the model out of its key, so that an adapter got the base's answers."""
    suite = built("truthfulqa_mc1").ref
    one, other = (Ref(kind="base_model", fingerprint=d * 64, digest=d * 64) for d in "ab")
    specs = [baseline_spec(base, suite, {"score": ["acc"]}).fingerprint for base in (one, other, one)]
    assert specs[0] == specs[2] != specs[1]


def test_a_padded_vocabulary_stays_padded_in_both_arms(base_folder, adapter_folders, tmp_path) -> None:
    """Trap 6: HFLM(peft=...) cuts the embeddings to the tokenizer's size, on the adapter's side only."""
    import torch
    from safetensors.torch import load_file, save_file

    from ft_pipeline.gate.arms import Arms

    padded = tmp_path / "padded"
    shutil.copytree(base_folder, padded)
    weights = load_file(padded / "model.safetensors")
    name = "model.embed_tokens.weight"
    weights[name] = torch.cat([weights[name], torch.zeros(64, weights[name].shape[1])])
    save_file(weights, padded / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": 448}))
    arms = Arms(padded, adapter_folders["zero"])
    ids = torch.tensor([[5, 6, 7]])
    with arms.base() as model:
        base = model(input_ids=ids).logits
    with arms.adapter() as model:
        adapter = model(input_ids=ids).logits
    assert base.shape[-1] == adapter.shape[-1] == 448 and torch.equal(base, adapter)


def test_a_suite_is_verified_by_building_it_again(built, store, monkeypatch) -> None:
    suite = built("truthfulqa_mc2")
    assert official.verify(store, suite.ref).ref == suite.ref
    monkeypatch.setattr("ft_pipeline.gate.official_rows._version", lambda: "9.9")
    with pytest.raises(DriftError, match="renders otherwise now: lm_eval"):
        official.verify(store, suite.ref)
    monkeypatch.undo()
    changed = suite.file("suite.jsonl")
    changed.chmod(0o644)
    changed.write_bytes(changed.read_bytes().replace(b"What of", b"What if", 1))
    with pytest.raises(IntegrityError):
        official.verify(store, suite.ref)


def test_nothing_is_asked_of_a_network(built, monkeypatch) -> None:
    def refused(*_args, **_more):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refused)
    assert built("hellaswag").manifest.counts["rows"] == 12


def test_official_questions_are_known_to_the_contamination_report(built) -> None:
    import pyarrow.parquet as pq

    suite = built("mmlu", only=("anatomy",))
    path = mirror_of_rows(suite)
    assert {q.item_sha256 for q in read_questions(suite)} == {
        item_sha256(r["question"]) for r in pq.read_table(path).to_pylist()
    }


def test_an_official_benchmark_is_evaluated_by_subject(built, gate, job_of, store) -> None:
    import pyarrow.parquet as pq

    from ft_pipeline.gate.main import body

    built("mmlu")
    wanted = replace(gate, benchmarks=(BenchmarkGate(name="mmlu", task="mmlu"),), safety=None)
    job = job_of(wanted, "zero")
    body(job, store, lambda _message: None)
    report = store.find(job.spec)
    result = read_report(report).gate("mmlu")
    assert (result.rows, result.difference) == (36, 0)
    rows = [r for r in pq.read_table(report.file("samples.parquet")).to_pylist() if r["gate"] == "mmlu"]
    assert {r["stratum"] for r in rows} == {*mirrors.SUBJECTS} and len({r["id"] for r in rows}) == 36
