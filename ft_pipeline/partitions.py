"""The one partition set and the asset keys: doors name each other's assets only through these."""

from __future__ import annotations

import dagster as dg

recipes = dg.DynamicPartitionsDefinition(name="recipes")
"""One partition per model line, `tenant/recipe`. A training job is a run of that partition."""

RAW_DATASET = dg.AssetKey("raw_dataset")
BASE_MODEL = dg.AssetKey("base_model")
PINNED_BASE = dg.AssetKey("pinned_base")
CURATED_DATASET = dg.AssetKey("curated_dataset")
PACKED_SHARDS = dg.AssetKey("packed_shards")
REFERENCE_LOGPROBS = dg.AssetKey("reference_logprobs")
CHECKPOINTS = dg.AssetKey("checkpoints")
ADAPTER = dg.AssetKey("adapter")
EVAL_REPORT = dg.AssetKey("eval_report")
BUMP_STATUS = dg.AssetKey("bump_status")
REGISTERED_MODEL = dg.AssetKey("registered_model")
DEPLOYMENT = dg.AssetKey("deployment")
EXPORTED_MODEL = dg.AssetKey("exported_model")

TENANT_TAG = "ft/tenant"
RECIPE_TAG = "ft/recipe_sha256"
JOB_TAG = "ft/job_id"
MODEL_TAG = "ft/model"
"""`tenant/name@N` or a line, of a run that moves a version."""
