"""What a page shows of a policy run: reward, length and divergence by step, what its rollouts cost, three completions of the last step."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.finetune.artifact import read_losses
from ft_pipeline.finetune.rollout_store import read_tax, rollouts_spec, rows_of, shards
from ft_pipeline.store.artifacts import Artifact, Store

CURVES = (("reward", "mean reward"), ("length", "tokens"), ("kl_completion", "nats from the reference"))
SHOWN = 3
EXCERPT = 160


def rollouts_of(store: Store, checkpoints: Artifact, *, keep_steps: int) -> Artifact | None:
    """The rollouts of a run, None for a method without any, and when none were kept."""
    return store.find(rollouts_spec(checkpoints.ref, keep_steps))


def policy_facts(checkpoints: Artifact, rollouts: Artifact) -> dict[str, Any]:
    """Name -> number or text."""
    losses = read_losses(checkpoints)
    return {
        "rollouts": rollouts.ref.digest,
        "completions_kept": rollouts.manifest.counts["rows"],
        **read_tax(rollouts),
        **{f"final_{name}": losses[-1][name] for name, _ in CURVES if name in losses[-1]},
    }


def policy_curves(losses: Sequence[Mapping[str, Any]]) -> str:
    """Markdown image of what the method told by step."""
    from matplotlib.figure import Figure

    curves = [(name, label) for name, label in CURVES if all(name in entry for entry in losses)]
    figure = Figure(figsize=(7, 2.6), dpi=100, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        axes.plot([e["step"] for e in losses], [e[name] for e in losses], color="#3b6ea5", linewidth=1.2)
        axes.set(title=name.replace("_", " "), xlabel="optimizer step", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f"![reward, length, divergence](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def completions_table(rollouts: Artifact) -> str:
    """Markdown: the last step's best, a middling and its worst completion."""
    rows = rows_of(shards(rollouts.folder)[-1])
    scored = sorted((row for row in rows if row["reward"] is not None), key=lambda row: -row["reward"])
    places = sorted({round(n * (len(scored) - 1) / (SHOWN - 1)) for n in range(SHOWN)}) if scored else []
    lines = [
        f"| {scored[n]['reward']:.3f} | {scored[n]['tokens']} | {_cell(scored[n]['completion'])} |" for n in places
    ]
    return "\n".join(["| reward | tokens | completion |", "|---|---|---|", *lines])


def _cell(text: str) -> str:
    short = text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."
    return short.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
