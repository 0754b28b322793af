"""A platform whose tenants may train `tiny`, for tests that train nothing: a base model of which only its config is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ft_pipeline import settings as settings_module
from ft_pipeline.settings import Settings

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
OFFER = """\
bases: {tiny: {uri: "home://bases/tiny", size: tiny}, acme/other: {uri: "home://bases/tiny", size: small}}
policies: [dev, staging]
"""


def offer_tiny(home: Settings, monkeypatch: pytest.MonkeyPatch, *, offer: str = OFFER) -> Settings:
    """The settings with the offer."""
    base = Path(home.home) / "bases" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps(CONFIG))
    (home.home / "offer.yaml").write_text(offer)
    monkeypatch.setenv("FT_OFFER", str(home.home / "offer.yaml"))
    return settings_module.load()
