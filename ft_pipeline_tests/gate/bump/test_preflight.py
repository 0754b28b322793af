"""Preflight: what a base change breaks is seen in headers and configs, before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ft_pipeline.gate.bump.preflight import preflight
from ft_pipeline.gate.bump.structure import needs_of, structure_of
from ft_pipeline.store.artifacts import Store
from ft_pipeline_tests import lines, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base_folder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def look(store: Store, catalog, folder: Path, tmp_path: Path):
    """The preflight of an adapter on the tiny base after a change of its folder."""

    def made(change) -> object:
        old = tiny.publish_base(store, folder)
        adapter = lines.publish_line(store, catalog, base=old)["adapter"]
        moved = shutil.copytree(folder, tmp_path / "moved")
        change(moved)
        new = tiny.publish_base(store, moved)
        return preflight(structure_of(store, old.ref), structure_of(store, new.ref), needs_of(store, adapter.ref))

    return made


def edit(folder: Path, name: str, change) -> None:
    body = json.loads((folder / name).read_text())
    change(body)
    (folder / name).write_text(json.dumps(body))


def weights(folder: Path, change) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def renamed(tensors: dict) -> dict:
    return {n.replace("layers.1.self_attn.q_proj", "layers.1.attention.q"): t for n, t in tensors.items()}


def wider(tensors: dict) -> dict:
    import numpy as np

    name = "model.layers.0.self_attn.v_proj.weight"
    return {**tensors, name: np.concatenate([tensors[name], tensors[name]])}


def test_a_readme_carries_the_report_forward(look):
    found = look(lambda folder: (folder / "README.md").write_text("better words"))
    assert (found.outcome, found.changed) == ("CARRY_FORWARD", ("docs",))


def test_other_weights_of_the_same_shape_have_to_be_measured(look):
    found = look(lambda folder: weights(folder, lambda tensors: {n: t * 1.5 for n, t in tensors.items()}))
    assert (found.outcome, found.changed) == ("OK", ("weights",))


def test_a_changed_config_that_keeps_every_shape_has_to_be_measured(look):
    found = look(lambda folder: edit(folder, "config.json", lambda body: body.update(rms_norm_eps=1e-3)))
    assert (found.outcome, found.changed) == ("OK", ("config",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: weights(f, renamed), "model.layers.1.self_attn.q_proj.weight of the adapter is not in the new base"),
        (lambda f: weights(f, wider), "model.layers.0.self_attn.v_proj.weight: the adapter needs 32x64, the new base has 64x64"),
        (lambda f: edit(f, "config.json", lambda b: b.update(vocab_size=512)), "the vocabulary has 512 entries, it had 384"),
        (lambda f: edit(f, "tokenizer.json", lambda b: b["model"]["merges"].pop()), "token ids mean something else"),
        (lambda f: edit(f, "tokenizer.json", lambda b: b["added_tokens"].append({"content": "<|x|>", "id": 384})), "added tokens changed: <|x|>"),
        (lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"), "the chat template changed"),
    ],
)  # fmt: skip
def test_what_the_adapter_cannot_live_with_is_incompatible_and_says_why(look, change, reason):
    found = look(change)
    assert found.outcome == "INCOMPATIBLE"
    assert any(reason in said for said in found.reasons), found.reasons


def test_a_full_fine_tune_needs_every_tensor(store, folder, tmp_path):
    full = tiny.publish_base(store, folder)
    moved = shutil.copytree(folder, tmp_path / "moved")
    weights(moved, renamed)
    new = tiny.publish_base(store, moved)
    found = preflight(structure_of(store, full.ref), structure_of(store, new.ref), needs_of(store, full.ref))
    assert found.outcome == "INCOMPATIBLE"
