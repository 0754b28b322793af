"""From the recipe's words to a judge that can be asked."""

from __future__ import annotations

from pathlib import Path

from ft_pipeline import settings
from ft_pipeline.judging.endpoint import Endpoint
from ft_pipeline.judging.judge import Speaker
from ft_pipeline.judging.scripted import Scripted
from ft_pipeline.named_function import function_named
from ft_pipeline.recipe_gate import Judge


def speaker_of(judge: Judge, *, folder: Path | None = None, device: str = "cpu") -> Speaker:
    """The judge, ready to be asked. `folder`: of a local model. Raises UserError without its key, RecipeError without its function."""
    if judge.kind == "scripted":
        return Scripted(function_named(judge.model, what="scripted judge"))
    if judge.kind == "local":
        from ft_pipeline.judging.local import LocalModel

        assert folder is not None
        return LocalModel(folder, device=device, max_new_tokens=judge.max_new_tokens)
    return Endpoint(
        base_url=judge.base_url, model=judge.model, key=settings.secret(judge.key_variable) if judge.key_variable else "",
        max_new_tokens=judge.max_new_tokens, seed=judge.seed, timeout_seconds=judge.timeout_seconds, attempts=judge.attempts,
    )  # fmt: skip
