"""Asks the two arms: what a stored baseline or an earlier, killed evaluation has answered is not asked again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError
from ft_pipeline.gate import baseline
from ft_pipeline.gate.arms import Arms, device_name
from ft_pipeline.gate.probes.probe import Probe
from ft_pipeline.gate.rounds import Block
from ft_pipeline.gate.samples import NotANumber, Sample
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import sha256_json
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Listener, log, progress
from ft_pipeline.workers.preemption import StopRequest

ANSWERS = "answers"
Answered = list[Sample] | str
"""The samples of a round, or the sentence that says why there are none."""
Part = tuple[Probe, Sequence[Block]]
"""A probe and the blocks of one round of it."""


@dataclass
class Meter:
    """Progress over all probes and both arms."""

    listener: Listener
    total: int
    done: int = 0

    def ticker(self, arm: str, probe: Probe, block: Block) -> Callable[[int, int], None]:
        """Counts one block of one arm. The scorers tick in their own unit, so a share of the block is what counts."""
        before = self.done
        self.done += len(block)

        def tick(done: int, total: int) -> None:
            now = before + len(block) * done / max(total, 1)
            progress(self.listener, "evaluate", round(now), total=self.total, unit="answer", arm=arm, gate=probe.name)

        return tick

    def finish(self) -> None:
        """Tells that nothing is left: what a look made needless was never asked."""
        progress(self.listener, "evaluate", self.total, total=self.total, unit="answer")


@dataclass
class Asking:
    """Both arms of one evaluation, asked part by part."""

    job: Job
    store: Store
    arms: Arms
    meter: Meter
    stop: StopRequest
    _told: set[str] = field(default_factory=set)

    def base(self, parts: Sequence[Part]) -> list[Answered]:
        """The base's answers to each part, from the stored baselines where they are. Every new part becomes one."""
        answers = [baseline.stored(self.store, self.baseline_spec(*part)) for part in parts]
        missing = [i for i, found in enumerate(answers) if found is None]
        for index in set(range(len(parts))) - set(missing):
            self._counted("base", parts[index])
        if not missing:
            self._tell("the base's answers are stored: only the adapter is asked")
        made = self._asked("base", [parts[i] for i in missing])
        for index, samples in zip(missing, made, strict=True):
            if not isinstance(samples, str):
                baseline.keep(self.store, self.baseline_spec(*parts[index]), samples)
        fresh = iter(made)
        return [next(fresh) if found is None else found for found in answers]

    def adapter(self, parts: Sequence[Part]) -> list[Answered]:
        """The adapter's answers to each part."""
        return self._asked("adapter", parts)

    def base_again(self, part: Part) -> Answered:
        """The base's answers computed anew, in blocks of another shape: for the noise of the engine."""
        return self._asked("base-again", [part])[0]

    def baseline_spec(self, probe: Probe, blocks: Sequence[Block]) -> Spec:
        """The baseline of a part of a probe."""
        place = self.job.placement
        identity = {
            **probe.identity, "kind": probe.kind, "template": self.arms.template_sha, "device": device_name(place.device),
            "threads": place.threads, "blocks": sha256_json([list(b) for b in blocks]),
        }  # fmt: skip
        return baseline.baseline_spec(self.job.spec.parents["base"], self.job.spec.parents[probe.role], identity)

    def _asked(self, arm: str, parts: Sequence[Part]) -> list[Answered]:
        """Loads the arm only where a block is left to ask."""
        with ExitStack() as stack:
            loaded: list[Any] = []

            def model() -> Any:
                if not loaded:
                    which = self.arms.adapter if arm == "adapter" else self.arms.base
                    loaded.append(stack.enter_context(which()))
                return loaded[0]

            return [self._part(arm, part, model) for part in parts]

    def _part(self, arm: str, part: Part, model: Callable[[], Any]) -> Answered:
        probe, blocks = part
        samples: list[Sample] = []
        for block in blocks:
            answered = self._block(arm, (probe, block), model)
            if isinstance(answered, str):
                return answered
            samples += answered
        return samples

    def _block(self, arm: str, asked: tuple[Probe, Block], model: Callable[[], Any]) -> Answered:
        probe, block = asked
        tick = self.meter.ticker(arm, probe, block)
        path = self.job.folder / ANSWERS / f"{arm}-{probe.name}-{sha256_json(list(block))[:16]}.json"
        if path.is_file():
            tick(1, 1)
            return [Sample(**row) for row in json.loads(path.read_bytes())]
        if self.stop.asked:
            self.stop.leave(f"the next {len(block)} questions of {probe.name}")
        asked_model = model()  # an adapter that does not fit its base ends the job: it is no answer
        try:
            samples = probe.answer(asked_model, block, tick)
        except (NotANumber, DataError) as error:
            return f"{error.what}. {error.why}"
        _keep(path, samples)
        return samples

    def _counted(self, arm: str, part: Part) -> None:
        for block in part[1]:
            self.meter.ticker(arm, part[0], block)(1, 1)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log(self.meter.listener, text)


def _keep(path: Path, samples: Sequence[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps([asdict(s) for s in samples]).encode())
