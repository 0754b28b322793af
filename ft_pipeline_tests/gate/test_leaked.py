"""An adapter that was trained on its own exam does not pass by it: leaked rows are found in every dataset behind it and left out."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ft_pipeline.gate import verdicts
from ft_pipeline.gate.artifact import Verdict, read_report
from ft_pipeline.gate.evaluation import evaluation_job
from ft_pipeline.gate.holdout import Task
from ft_pipeline.gate.leaked import Seen, judged_on_unseen
from ft_pipeline.gate.leaks import Leak, Source, datasets_behind, leak_of
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.gate.report import report_page
from ft_pipeline.gate.reworded import OPENING, facts_of, reworded
from ft_pipeline.recipe import Gate, HoldoutGate
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests import road, tiny
from ft_pipeline_tests.gate import reports
from ft_pipeline_tests.gate.conftest import publish_curated

STAGING = read_policy("staging")


def asked(number: int, words: int = 12) -> str:
    return " ".join(road.words(words, seed=number)) + "?"


def row(number: int, question: str | None = None, answer: str = "yes") -> dict:
    return {
        "messages": [{"role": "user", "content": question or asked(number)}, {"role": "assistant", "content": answer}]
    }


def task(number: int, question: str | None = None) -> Task:
    return Task(id=f"h{number}", messages=({"role": "user", "content": question or asked(number)},), reference="yes")


@pytest.fixture
def trained(store):
    """A curated dataset of train rows (of a shape), as `ft-pipeline` publishes it."""

    def made(rows: list[dict], shape: str = "chat"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        body = [json.dumps(r, sort_keys=True) for r in rows]
        with store.publish(Spec(kind="curated_dataset", config={"train": body}, parents={}, code="t")) as draft:
            columns = {"row_id": [f"r{n}" for n in range(len(body))], "shape": [shape] * len(body), "content": body}
            table = pa.table({k: pa.array(v, pa.string()) for k, v in columns.items()})
            pq.write_table(table, draft.folder / "train.parquet")
            pq.write_table(table.slice(0, 0), draft.folder / "holdout.parquet")
        return draft.artifact

    return made


def test_a_question_is_found_word_for_word_inside_a_longer_row_and_nearly_so(trained) -> None:
    tasks = [task(n) for n in range(100, 140)] + [task(900, "and why?"), task(901, "Say it again!")]
    near = asked(102, 12).replace("?", " of all?")
    rows = [
        row(0, asked(100)),
        row(1, f"First another thing.\n{asked(101)} Then say why, and be brief."),
        row(2, near),
        row(3, "and why?"),
        row(4, f"Please: say it again! {asked(5)}"),
        row(5, "Like assertTrue(a < b)."),
        *(row(n) for n in range(10, 60)),
    ]
    tasks.append(task(902, "Like assertTrue(a > b)."))
    leak = leak_of(tasks, [trained(rows)])
    assert leak.questions == {"h100": True, "h101": False, "h102": False, "h900": True}
    assert [(s.questions, s.exactly) for s in leak.sources] == [(4, 2)] and leak.num_datasets == 1
    assert leak_of(tasks, [trained([row(n) for n in range(10, 60)])]).questions == {}


def test_every_shape_of_training_row_is_read(trained) -> None:
    question = asked(7)
    turns = [{"role": "user", "content": question}]
    shapes = {
        "completion": {"prompt": question, "completion": "x"},
        "preference": {"prompt": turns, "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]},
        "rlvr": {"prompt": turns, "answer": "x"},
        "kto": {"prompt": turns, "completion": [{"role": "assistant", "content": "a"}], "label": True},
        "text": {"text": f"Exam. {question} Answer: yes."},
    }  # fmt: skip
    for shape, content in shapes.items():
        found = leak_of([task(7)], [trained([content], shape)]).questions
        assert found == {"h7": shape != "text"}, shape
    assert leak_of(
        [Task(id="c", prompt=question, reference="x")], [trained([shapes["completion"]], "completion")]
    ).questions == {"c": True}


def test_the_second_turn_is_no_leak_where_the_conversation_before_it_is_another(trained) -> None:
    before = [
        {"role": "user", "content": asked(1)},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "are you sure?"},
    ]
    other = [
        {"role": "user", "content": asked(2)},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "are you sure?"},
    ]
    dataset = trained([{"messages": [*before, {"role": "assistant", "content": "I am."}]}])
    assert leak_of([Task(id="a", messages=tuple(other), reference="x")], [dataset]).questions == {}
    assert leak_of([Task(id="b", messages=tuple(before), reference="x")], [dataset]).questions == {"b": True}


def test_datasets_of_an_adapter_that_another_started_from_are_among_those_behind_it(store, trained) -> None:
    old, new = trained([row(1)]), trained([row(2)])

    def made(kind, **parents):
        with store.publish(Spec(kind=kind, config={}, parents=parents, code="t")) as draft:
            (draft.folder / "x").write_text(kind)
        return draft.artifact.ref

    first = made("adapter", shards=made("packed_shards", curated=old.ref))
    second = made("adapter", shards=made("packed_shards", curated=new.ref), start=first)
    assert {a.ref.digest for a in datasets_behind(store, second)} == {old.ref.digest, new.ref.digest}
    assert datasets_behind(store, made("adapter")) == []


def judged(num_leaked: int, *, known: float, unknown: float, rows: int = 500):
    """A holdout of which the first rows leaked: the adapter knows a share of those and of the others; the base is right on every fifth."""
    draw = random.Random(4)
    pairs = [
        replace(p, adapter_score=float(draw.random() < (known if n < num_leaked else unknown)), base_score=float(n % 5 == 0))
        for n, p in enumerate(reports.task(rows, base=0, adapter=0))
    ]  # fmt: skip
    report = verdicts.overall([verdicts.holdout(pairs, STAGING, metric="exact_match")], STAGING, name="staging")
    sources = (Source(digest="ab" * 32, questions=num_leaked, exactly=num_leaked),) if num_leaked else ()
    leak = Leak(questions={p.id: True for p in pairs[:num_leaked]}, sources=sources, num_datasets=1)
    return report, judged_on_unseen(report, Seen(leak=leak), pairs, policy=STAGING), pairs


def test_what_was_learnt_by_heart_does_not_pass_and_what_passes_without_it_does() -> None:
    before, after, _ = judged(150, known=1.0, unknown=0.2)
    gate = after.gate("holdout")
    assert before.passed or before.verdict is Verdict.INCONCLUSIVE
    assert before.gate("holdout").verdict is Verdict.PASS and gate.verdict is not Verdict.PASS and not after.passed
    assert gate.rows == 350 and gate.facts["leaked_rows"] == 150 and gate.facts["leaked_adapter"] == 1.0
    assert gate.reason.startswith(
        "150 of its 500 rows stand in data that the adapter was trained on, and are left out. The others: exact_match"
    )
    assert after.reason.startswith(
        f"holdout {'failed' if gate.verdict is Verdict.FAIL else 'is inconclusive'}: 150 of its 500 rows"
    )
    _, after, _ = judged(150, known=1.0, unknown=0.7)
    assert after.gate("holdout").verdict is Verdict.PASS and after.gate("holdout").facts["clean_rows"] == 350


def test_a_holdout_that_leaked_whole_or_nearly_shows_nothing() -> None:
    _, after, _ = judged(500, known=1.0, unknown=0.0)
    gate = after.gate("holdout")
    assert gate.verdict is Verdict.INCONCLUSIVE and "no row is left that could show a gain" in gate.reason
    _, after, _ = judged(400, known=1.0, unknown=1.0)
    assert (
        after.gate("holdout").verdict is Verdict.INCONCLUSIVE and "fewer than the 200" in after.gate("holdout").reason
    )
    _, after, _ = judged(0, known=1.0, unknown=1.0)
    assert after.gate("holdout").verdict is Verdict.PASS and after.gate("holdout").facts["leaked_rows"] == 0


def test_leaked_rows_that_went_badly_do_not_save_an_adapter() -> None:
    before, after, _ = judged(450, known=0.0, unknown=1.0)
    assert before.gate("holdout").verdict is after.gate("holdout").verdict is Verdict.FAIL
    assert "without them it went from" in after.gate("holdout").reason


def test_the_page_says_it_and_what_helps() -> None:
    _, after, pairs = judged(150, known=1.0, unknown=0.2)
    page = report_page(after, {"holdout": pairs}, config={}, parents={})
    assert "150 questions stand in rows that the adapter was trained on (150 word for word)" in page
    assert (
        "150 holdout rows stood in training data" in page
        and "draw a holdout that no training set behind it holds" in page
    )


def test_other_words_are_a_warning_only_where_the_gain_is_gone() -> None:
    rows = reports.task(100, base=0, adapter=0)
    learnt = [replace(p, adapter_score=1.0) for p in rows]
    found = facts_of(learnt, rows)
    assert found["reworded_gain_before"] == 1.0 and found["reworded_gain"] == 0.0 and found["reworded_flagged"]
    assert not facts_of(learnt, learnt)["reworded_flagged"]
    changed = reworded(task(3))
    assert changed.messages[-1]["content"] == OPENING + asked(3) and changed.reference == "yes"
    report = verdicts.overall([verdicts.holdout(learnt, STAGING, metric="exact_match")], STAGING, name="staging")
    seen = Seen(leak=Leak(questions={}, sources=(), num_datasets=0), in_other_words=found)
    gate = judged_on_unseen(report, seen, learnt, policy=STAGING).gate("holdout")
    assert gate.verdict is report.gate("holdout").verdict and "Warning: 100% of the gain is lost" in gate.reason


LEAKED, ROWS = 48, 240


class Never:
    """Nobody asks this evaluation to stop."""

    asked = False


def by_heart(base: Path, folder: Path, rows: list[dict]) -> Path:
    """The tiny base, trained until it says the answers of these rows; about 150 steps over all of them."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [tokenizer.apply_chat_template(r["messages"], tokenize=False) for r in rows]
    ids = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    start = [t.rindex(tiny.ASSISTANT) + len(tiny.ASSISTANT) for t in texts]
    asked_tokens = [len(tokenizer(t[:s])["input_ids"]) for t, s in zip(texts, start, strict=True)]
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
    for place, tokens in enumerate(asked_tokens):
        labels[place, :tokens] = -100
    model = AutoModelForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(**ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
    shutil.copytree(base, folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_a_model_that_only_learnt_the_holdouts_prompts_is_stopped_and_from_outside_is_warned_of(
    store, home, publish, base_folder, trained, tmp_path
) -> None:
    from ft_pipeline.gate.main import evaluate

    draw = random.Random(0)
    exam = [row(n, asked(n, 8), " ".join(draw.sample(tiny.WORDS, 3))) for n in range(ROWS)]
    weights = by_heart(base_folder, tmp_path / "by-heart", exam[:LEAKED])
    gate = Gate(policy="dev", holdout=HoldoutGate(metric="exact_match", max_new_tokens=12))
    curated = publish_curated(store, exam)

    def verdict_of(data=None):
        parents = {"curated": data.ref} if data else {}
        with store.publish(Spec(kind="adapter", config={"by": "heart"}, parents=parents, code="t")) as draft:
            for path in weights.iterdir():
                (draft.folder / path.name).write_bytes(path.read_bytes())
        refs = {"adapter": draft.artifact.ref, "base": publish("base_model", base_folder).ref, "curated": curated.ref}
        job = evaluation_job(gate, refs, settings=home, placement=Placement(threads=1), key="demo/x")
        evaluate(job, store, ignore, stop=Never())
        return read_report(store.find(job.spec))

    harmless, leaked, outside = (
        verdict_of(trained([row(n) for n in range(1000, 1050)])), verdict_of(trained(exam[:LEAKED])), verdict_of()
    )  # fmt: skip
    assert harmless.passed and harmless.gate("holdout").facts["leaked_rows"] == 0
    gate_of = leaked.gate("holdout")
    assert leaked.verdict is Verdict.FAIL and gate_of.facts["leaked_rows"] == gate_of.facts["leaked_exactly"] == LEAKED
    assert gate_of.facts["leaked_adapter"] > 0.9 and gate_of.adapter < 0.3 and gate_of.rows == ROWS - LEAKED
    assert "48 of its 240 rows stand in data that the adapter was trained on" in leaked.reason
    facts = outside.gate("holdout").facts
    assert facts["reworded_rows"] == 200 and facts["reworded_gain"] < facts["reworded_gain_before"]
    assert facts["reworded_flagged"] and "may have been trained on this holdout" in outside.gate("holdout").reason
