"""What a deployment is in the store: one JSON file that says what answers under which name."""

from __future__ import annotations

from ft_pipeline.store.artifacts import Store

KIND = "deployment"
DEPLOYMENT = "deployment.json"
POOL_PREFIX = "local-"


def pool_of(base_digest: str) -> str:
    """The pool of this machine's server for a base: one pool a base, so that lines on different bases live side by side."""
    return f"{POOL_PREFIX}{base_digest[:12]}"


def adapters_of_exports(store: Store) -> dict[str, str]:
    """Digest of every exported model -> that of the adapter, or full fine-tune, that it was made from."""
    made = {manifest.digest: manifest.parents for manifest in store.all("exported_model")}
    found = {}
    for digest, parents in made.items():
        source = parents.get("adapter") or parents["unquantised"]
        merged_from = made.get(source.digest, {}).get("adapter")
        found[digest] = (merged_from or source).digest
    return found


def export_head(name: str) -> str:
    """Under which head a model line keeps its newest export of a format."""
    return f"exported_model:{name}"


def export_report_head(name: str) -> str:
    """Under which head the report on it is."""
    return f"export_report:{name}"
