"""What a reference model thinks: the log-probabilities of each row alone, whatever the batch; the same bytes after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ft_pipeline.encode import reference_main
from ft_pipeline.encode.artifact import read_reference
from ft_pipeline.encode.example_files import write_examples
from ft_pipeline.encode.examples import encode_examples
from ft_pipeline.encode.logprobs import Sequenced, batches, load_reference, log_probabilities
from ft_pipeline.encode.reference import Measure, reference_job, reference_spec
from ft_pipeline.encode.template import load_template
from ft_pipeline.errors import DataError
from ft_pipeline.settings import child_environment
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.messages import Mailbox
from ft_pipeline_tests import tiny

TOLERANCE = 1e-5
"""Nats a token between two batch sizes, float32."""


def content(shape: str, i: int) -> dict:
    turns = tiny.chat_rows(i + 1)[i]["messages"]
    prompt, good = turns[:-1], turns[-1:]
    if shape == "kto":
        return {"prompt": prompt, "completion": good, "label": i % 2 == 0}
    bad = [{"role": "assistant", "content": "I cannot help with that request." * (1 + i % 3)}]
    return {"prompt": prompt, "chosen": good, "rejected": bad}


def publish(store, template, shape: str, count: int):
    rows = encode_examples(template, [(f"r{i}", shape, content(shape, i)) for i in range(count)], limit_tokens=512)
    with store.publish(Spec(kind="packed_shards", config={"s": shape, "n": count}, parents={}, code="test")) as draft:
        draft.counts["rows"] = len(rows)
        write_examples(draft, "train", iter(rows[3:]), index=lambda _: None)
        write_examples(draft, "validation", iter(rows[:3]), index=lambda _: None)
    return draft.artifact, rows


@pytest.fixture
def base(store, tmp_path):
    return tiny.publish_base(store, tiny.base_folder(tmp_path / "base"))


@pytest.fixture
def template(base):
    return load_template(base.folder, loss="assistant")


def run_here(store, shards, base, **measure):
    job = reference_job(
        Measure(**measure), shards=shards, reference=base, work=store.work, placement=Placement(threads=1)
    )
    if found := store.find(job.spec):
        return found
    job.folder.mkdir(parents=True, exist_ok=True)
    reference_main.body(job, store, Mailbox(job.folder / "messages.jsonl"))
    return store.find(job.spec)


def alone(base, prompt, completion, spans) -> np.ndarray:
    """By hand: one row, every logit, the log-softmax at the token before."""
    model = load_reference(base.folder, dtype="float32", device="cpu", threads=1)
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        scores = model(ids, use_cache=False).logits[0].float().log_softmax(-1)
    places = [len(prompt) + t for a, b in spans for t in range(a, b)]
    return np.array([float(scores[t - 1, ids[0, t]]) for t in places])


def test_pairs_have_the_log_probabilities_that_each_completion_has_alone(store, base, template):
    shards, rows = publish(store, template, "preference", 12)
    found = {
        r.row_id: r for split in ("train", "validation") for r in read_reference(run_here(store, shards, base), split)
    }
    assert len(found) == 12
    for row in rows:
        for side in ("chosen", "rejected"):
            wanted = alone(base, row.prompt_ids, getattr(row, f"{side}_ids"), getattr(row, f"{side}_spans"))
            assert np.abs(np.array(found[row.row_id].tokens[side]) - wanted).max() < TOLERANCE
            assert found[row.row_id].sums[side] == np.sum(np.array(found[row.row_id].tokens[side], np.float64))


def test_a_kto_row_has_its_own_completion_and_that_of_another_prompt(store, base, template):
    shards, rows = publish(store, template, "kto", 9)
    found = list(read_reference(run_here(store, shards, base), "train"))
    train = rows[3:]
    for n, row in enumerate(train):
        other = train[(n + 1) % len(train)]
        wanted = alone(base, row.prompt_ids, other.completion_ids, other.completion_spans)
        assert abs(found[n].sums["mismatched"] - wanted.sum()) < TOLERANCE * len(wanted)
        wanted = alone(base, row.prompt_ids, row.completion_ids, row.completion_spans)
        assert abs(found[n].sums["completion"] - wanted.sum()) < TOLERANCE * len(wanted)


def test_another_batch_size_is_another_artifact_with_the_same_numbers(store, base, template):
    shards, _ = publish(store, template, "preference", 12)
    one, many = run_here(store, shards, base, batch_tokens=1), run_here(store, shards, base, batch_tokens=4096)
    assert one.ref.fingerprint != many.ref.fingerprint
    for a, b in zip(read_reference(one, "train"), read_reference(many, "train"), strict=True):
        for side in ("chosen", "rejected"):
            assert np.abs(np.subtract(a.tokens[side], b.tokens[side])).max() < TOLERANCE


def test_the_same_inputs_give_the_same_bytes(store, base, template, tmp_path):
    shards, _ = publish(store, template, "preference", 12)
    first = run_here(store, shards, base)
    spec = reference_spec(Measure(), shards=shards, reference=base)
    assert first.ref.fingerprint == spec.fingerprint
    first.folder.rename(tmp_path / "away")
    assert run_here(store, shards, base).ref == first.ref


def test_reference_model_template_rows_and_type_are_in_the_identity(store, base, template, tmp_path):
    shards, _ = publish(store, template, "preference", 6)
    other = tiny.publish_base(store, tiny.base_folder(tmp_path / "other", seed=1))
    plain = tiny.publish_base(store, tiny.base_folder(tmp_path / "plain", template=tiny.PLAIN_TEMPLATE))
    more, _ = publish(store, template, "preference", 7)
    specs = [
        reference_spec(Measure(dtype=dtype), shards=s, reference=r)
        for s, r, dtype in [
            (shards, base, "float32"), (shards, base, "bfloat16"), (shards, other, "float32"),
            (shards, plain, "float32"), (more, base, "float32"),
        ]
    ]  # fmt: skip
    assert len({s.fingerprint for s in specs}) == 5


def test_bfloat16_is_near_and_its_softmax_is_float32(store, base, template):
    shards, _ = publish(store, template, "preference", 6)
    for a, b in zip(
        read_reference(run_here(store, shards, base), "train"),
        read_reference(run_here(store, shards, base, dtype="bfloat16"), "train"),
        strict=True,
    ):
        assert 0 < abs(a.sums["chosen"] - b.sums["chosen"]) < 0.05 * abs(a.sums["chosen"])


def test_windows_and_prompts_have_no_reference(store, base, template):
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(8)), base)
    with pytest.raises(DataError, match="no completions that are compared"):
        run_here(store, shards, base)


def test_a_block_that_is_cut_short_is_computed_again(store, base, template, monkeypatch):
    monkeypatch.setattr(reference_main, "BLOCK_ROWS", 4)
    shards, _ = publish(store, template, "preference", 12)
    job = reference_job(Measure(), shards=shards, reference=base, work=store.work, placement=Placement(threads=1))
    saved = reference_main._save
    calls = []

    def dying(path, table):
        saved(path, table)
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(path.read_bytes()[:-100])
            raise KeyboardInterrupt

    monkeypatch.setattr(reference_main, "_save", dying)
    with pytest.raises(KeyboardInterrupt):
        run_here(store, shards, base)
    assert len(list((job.folder / "blocks").iterdir())) == 2
    resumed = run_here(store, shards, base)
    # 3 blocks of training and one of validation, the second one twice
    assert len(calls) == 5 and calls[2] == calls[1] and not (job.folder / "blocks").exists()
    monkeypatch.setattr(reference_main, "_save", saved)
    resumed.folder.rename(job.folder / "moved")
    assert run_here(store, shards, base).ref == resumed.ref


@pytest.mark.slow
def test_killed_and_started_again_it_gives_the_same_digest(home, store, base, template, monkeypatch):
    shards, _ = publish(store, template, "preference", 900)
    job = reference_job(
        Measure(batch_tokens=256), shards=shards, reference=base, work=store.work, placement=Placement(threads=1)
    )
    command = [sys.executable, "-m", job.module, str(job.write())]
    child = subprocess.Popen(command, env=child_environment(home), start_new_session=True)
    blocks = job.folder / "blocks"
    until = time.monotonic() + 100
    while not (blocks.is_dir() and list(blocks.glob("*.parquet"))) and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(blocks.glob("*.parquet")) and store.find(job.spec) is None
    assert subprocess.run(command, env=child_environment(home), check=False).returncode == 0
    resumed = open_store(home).find(job.spec)
    resumed.folder.rename(job.folder / "moved")
    assert run_here(store, shards, base, batch_tokens=256).ref == resumed.ref


def test_batches_hold_every_sequence_once_and_stay_within_the_tokens():
    lengths = [3, 50, 7, 200, 7, 1]
    made = list(batches(lengths, batch_tokens=100))
    assert sorted(place for batch in made for place in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[p] for p in b) <= 100 for b in made)
    assert made[0] == [3]


def test_a_soft_cap_behind_the_head_counts(tmp_path):
    from safetensors.torch import save_file
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, sliding_window=8, final_logit_softcapping=0.5, max_position_embeddings=64,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    weights = {n: t for n, t in Gemma2ForCausalLM(config).state_dict().items() if n != "lm_head.weight"}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load_reference(tmp_path, dtype="float32", device="cpu", threads=1)
    rows = [Sequenced(ids=list(range(1, n)), spans=[(2, n - 1)]) for n in (12, 30, 5)]
    found = log_probabilities(model, rows, batch_tokens=4096)
    for row, values in zip(rows, found, strict=True):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            scores = model(ids, use_cache=False).logits[0].log_softmax(-1)
        wanted = [float(scores[t - 1, ids[0, t]]) for t in range(*row.spans[0])]
        assert np.abs(values - wanted).max() < TOLERANCE
