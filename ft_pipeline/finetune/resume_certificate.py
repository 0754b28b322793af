"""The canary: the recipe over a few short items and a tiny random model of the same class, run whole, and killed and resumed."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from ft_pipeline.encode.artifact import Window
from ft_pipeline.finetune.artifact import MODEL_CONFIG, MODEL_WEIGHTS, RESUME
from ft_pipeline.finetune.checkpoint import Checkpoints, State
from ft_pipeline.finetune.loop import Run, train
from ft_pipeline.finetune.methods.method import Loss, Method
from ft_pipeline.finetune.metrics import Metrics
from ft_pipeline.finetune.model import Trainee, load_trainee
from ft_pipeline.finetune.resume_proof import Proof, not_run
from ft_pipeline.finetune.rollout import Ask
from ft_pipeline.finetune.schedule import Schedule
from ft_pipeline.recipe_reinforce import Reinforce
from ft_pipeline.store.files import write_atomic
from ft_pipeline.workers.messages import ignore, log
from ft_pipeline.workers.preemption import StopRequest

STEPS, MICROS_PER_STEP, SAVE_EVERY = 6, 2, 2
TOKENS = 192
"""Of a window at most."""
LOOKED_AT = 64
"""Items of which the shortest are taken, where they are no windows."""
NEW_TOKENS, COMPLETIONS = 8, 4
"""Of a policy's rollouts at most."""
SMALL = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16,
    "moe_intermediate_size": 64, "num_experts": 4, "num_local_experts": 4,
}  # fmt: skip
"""Largest values of a canary's config."""
WORST = 1e-3
"""A larger relative difference is no tolerance."""


class Killed(BaseException):
    """Ends a canary as SIGKILL would: no handler of the loop may save anything."""


@dataclass
class Interruption:
    """A stop request of a canary, which its own method asks for."""

    asked: bool = False


@dataclass
class Doomed:
    """The method of a canary, which dies or is stopped in one forward pass, or leaves when the real run is stopped."""

    method: Method
    real: Any
    """Stop request of the run that the certificate is for."""
    stop: Interruption
    dies_in: int = -1
    stops_in: int = -1
    micro: int = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def loss(self, trainee: Trainee, batch: Any) -> Loss:
        """The method's own."""
        self.micro += 1
        if self.micro == self.dies_in or self.real.asked:
            raise Killed
        self.stop.asked = self.stop.asked or self.micro == self.stops_in
        return self.method.loss(trainee, batch)


def certified(run: Run, *, base: Path, folder: Path) -> dict[str, Any]:
    """The facts for `resume.json`: those of an earlier attempt, or of a canary that is run now (about a second on a CPU)."""
    path = folder / RESUME
    if path.is_file():
        return json.loads(path.read_bytes())
    if not run.schedule.section.resume_certificate:
        return not_run("the recipe says resume_certificate: false")
    if run.world.compile:
        return not_run("the layers are compiled, those of the canary are not: fused sums round in another order")
    if not run.world.leads:
        return not_run("the leading process runs the canary")
    try:
        with TemporaryDirectory(prefix="canary-", dir=folder) as place:
            facts = _canary(run, base, Path(place)).facts()
    except Killed:
        return not_run("the run was stopped before")
    except Exception as error:  # noqa: BLE001 - a canary that cannot live proves nothing, and stops nothing
        log(run.metrics.listener, f"exact resume is not provable: {type(error).__name__}: {error}")
        facts = Proof(verdict="not provable", reason=f"the canary ended with {type(error).__name__}").facts()
    write_atomic(path, json.dumps(facts).encode())
    return facts


def _canary(run: Run, base: Path, place: Path) -> Proof:
    source = run.schedule.section
    small = min(2, source.windows_per_micro)
    section = replace(
        source, windows_per_micro=small, windows_per_step=MICROS_PER_STEP * small, epochs=1, on_loss_spike="warn",
        evaluate_every_steps=None, early_stop_evaluations=None, reinforce=_brief(source.reinforce),
    )  # fmt: skip
    folder = tiny_base(base, place / "base")
    updates = section.reinforce.updates_per_rollout if section.reinforce else 1
    items = _short(run, STEPS // updates * MICROS_PER_STEP * small)
    of_policy = getattr(run.method, "canary", None)
    method = of_policy(section, folder) if of_policy else run.method
    draw, micros = random.Random(source.seed), STEPS * MICROS_PER_STEP  # noqa: S311 - no secret
    dies = draw.randrange(SAVE_EVERY * MICROS_PER_STEP + 1, micros - 4)
    resumed_at = (dies // MICROS_PER_STEP) // SAVE_EVERY * SAVE_EVERY * MICROS_PER_STEP
    stops = draw.randrange(dies + 1, micros - 1)
    canary = _Canary(run, method, section, folder, items)
    whole = canary.train(place / "whole")
    for until in ({"dies_in": dies}, {"stops_in": stops - resumed_at}):
        canary.train(place / "killed", **until)
    again = canary.train(place / "killed")
    assert whole is not None and again is not None, "both have come to their end"
    model = whole[0].model
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    scope = {
        "model": type(plain).__name__, "attention": plain.config._attn_implementation, "device": whole[0].device,
        "dtype": section.dtype, "adapter": section.lora is not None, "method": section.method, "processes": 1,
        "micros": micros, "killed_in_micro": dies, "stopped_in_micro": stops,
    }  # fmt: skip
    return _compared(whole, again, scope)


@dataclass(frozen=True)
class _Canary:
    run: Run
    method: Method
    section: Any
    base: Path
    items: Sequence[Any]

    def train(self, folder: Path, **until: int) -> tuple[Trainee, State] | None:
        """What training ends in; None when it was killed or stopped on the way."""
        from ft_pipeline.errors import Interrupted

        folder.mkdir(exist_ok=True)
        trainee = load_trainee(self.base, self.section, device=self.run.trainee.device)
        schedule, stop = Schedule(section=self.section, windows=len(self.items)), Interruption()
        method = cast(Method, Doomed(self.method, self.run.stop, stop, **until))
        made = Run(
            trainee=trainee, method=method, schedule=schedule, train=self.items, validation=(),
            stop=cast(StopRequest, stop),
            checkpoints=Checkpoints(folder / "checkpoints", "canary", ignore, every_steps=SAVE_EVERY),
            metrics=Metrics(folder=folder, steps=schedule.steps, listener=ignore),
        )  # fmt: skip
        trainee.model.train()
        try:
            return trainee, train(made)
        except Killed:
            if self.run.stop.asked:
                raise
            return None
        except Interrupted:
            return None


def _compared(whole: tuple[Trainee, State], again: tuple[Trainee, State], scope: dict[str, Any]) -> Proof:
    expected, found = whole[0].live_tensors(), again[0].live_tensors()
    same = all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    if same and whole[1] == again[1]:
        return Proof(verdict="bit-exact", scope=scope)
    worst = max(_difference(tensor, found[name]) for name, tensor in expected.items())
    if same or not worst < WORST:
        reason = "the losses of the resumed canary differ" if same else "the weights of the resumed canary differ"
        return Proof(verdict="not provable", reason=reason, scope=scope)
    return Proof(verdict="tolerance", difference=10.0 ** math.ceil(math.log10(worst)), scope=scope)


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Largest absolute difference, relative to the largest value."""
    return float((expected.float() - found.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30))


def tiny_base(base: Path, folder: Path) -> Path:
    """A base model of the same config class with two narrow layers, random weights and the vocabulary of the real one."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    _shrink(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder.mkdir(parents=True)
    # not model.save_pretrained: it imports accelerate and deepspeed
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    seen: dict[int, str] = {}
    weights = {n: t.contiguous() for n, t in model.state_dict().items() if seen.setdefault(t.data_ptr(), n) == n}
    save_file(weights, folder / MODEL_WEIGHTS, metadata={"format": "pt"})
    if not (folder / MODEL_CONFIG).is_file():
        shutil.copyfile(base / MODEL_CONFIG, folder / MODEL_CONFIG)
    return folder


def _shrink(config: Any) -> None:
    """In place. Grouped-query attention stays grouped."""
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    for name, value in SMALL.items():
        if isinstance(given := getattr(config, name, None), int):
            setattr(config, name, min(given, value))
    if groups is not None:
        config.num_key_value_heads = config.num_attention_heads if groups == heads else 2
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        config.layer_types = kinds[: config.num_hidden_layers]


def _brief(plan: Reinforce | None) -> Reinforce | None:
    """Rollouts of a few short completions; where rollouts are kept, for a number of steps that no save falls in with."""
    if plan is None:
        return None
    tokens, kept = min(plan.max_new_tokens, NEW_TOKENS), 1 if plan.updates_per_rollout == 1 else SAVE_EVERY + 1
    return replace(
        plan, max_new_tokens=tokens, completions=min(plan.completions, COMPLETIONS), updates_per_rollout=kept,
        overlong_tokens=None if plan.overlong_tokens is None else min(plan.overlong_tokens, tokens),
    )  # fmt: skip


def _short(run: Run, count: int) -> list[Any]:
    """So many items with few tokens; repeated where there are not so many."""
    first = list(run.train[: min(LOOKED_AT, len(run.train))])
    # not isinstance: a pair is a window of two rows, and a cut one is no pair
    if type(first[0]) is Window:
        return list(islice(cycle([_cut(window) for window in first[:count]]), count))
    sizes = {n: _tokens(run, item) for n, item in enumerate(first)}
    shortest = sorted(sizes, key=lambda n: (sizes[n], n))[:count]
    return [first[n] for n in islice(cycle(shortest), count)]


def _tokens(run: Run, item: Any) -> int:
    """Of an item. Not by its batch for a prompt: that would sample completions from the real model."""
    return len(item.ids) if isinstance(item, Ask) else run.method.batch(run.trainee, [item]).tokens


def _cut(window: Window) -> Window:
    """The first tokens of a window; all of them are trained when none of them was."""
    end = min(len(window.ids), TOKENS)
    spans = tuple((a, min(b, end)) for a, b in window.spans if a < end)
    lengths, start = [], 0
    for length in window.lengths:
        if start < end:
            lengths.append(min(length, end - start))
        start += length
    row_ids = window.row_ids[: len(lengths)]
    return replace(window, ids=window.ids[:end], spans=spans or ((1, end),), lengths=tuple(lengths), row_ids=row_ids)
