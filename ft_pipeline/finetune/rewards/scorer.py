"""A trained reward model as a function with TRL's signature: the tokens that the policy read and wrote become one number each.

The model reads a prompt and a completion in the form of its own training rows: an answer up to the end of its turn, where the score is
read; or the steps of an answer, cut at the separator that was behind each step in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ft_pipeline.encode.artifact import Window
from ft_pipeline.errors import DataError, TrainingFailed
from ft_pipeline.finetune.batches import batch_of
from ft_pipeline.finetune.model import Trainee, load_trainee
from ft_pipeline.finetune.rewards.trained import TrainedReward
from ft_pipeline.finetune.score import scores

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
ROWS = 16
"""Read at once: a constant, since the shape of a batch is part of its last bits."""
MARK = "endofturnmark"
Said = str | Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A reward model, ready to be asked."""

    trainee: Trainee
    tokenizer: Any
    tail: list[int]
    """Of a template: the tokens behind an answer, from the end of its turn on."""
    separator: str
    reads_tokens: int

    def outcome(
        self, completions: Sequence[str], *, prompts: Sequence[Said], prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]], normalize: str = "sigmoid", **_columns: Any,
    ) -> list[float]:  # fmt: skip
        """Of a model trained by `reward`: the score at the end of each answer.

        normalize: `sigmoid` puts it between 0 and 1, as a verifiable reward is, so that pass_at, weights and guards mean the
        same: the chance that it beats an answer of score 0 (Bradley-Terry), where `center_weight` holds the middle. `none` is
        the score itself, whose scale is the model's own. A completion that was cut is read as if it ended there.
        """
        rows = []
        for prompt, text, ids in zip(self._prompts(prompts, prompt_ids), completions, completion_ids, strict=True):
            answer = list(ids) or self._ids(text)
            whole = [*prompt, *answer, *self.tail[answer[-1:] == self.tail[:1] :]]
            rows.append(_window(whole, [len(whole) - 1]))
        found = torch.cat(self._scores(rows))
        return (found.sigmoid() if normalize == "sigmoid" else found).tolist()

    def process(
        self, completions: Sequence[str], *, prompts: Sequence[Said], prompt_ids: Sequence[Sequence[int]],
        over: str = "min", **_columns: Any,
    ) -> list[float]:  # fmt: skip
        """Of a model trained by `process_reward`: the chances that the steps of each answer are right, as one number; 0 without a step.

        The steps are tokenised apart, as in training.

        over: `min` is the worst step; `product` the chance that all are right (arXiv 2305.20050 compares the two and finds no
        difference in ranking; as a reward a product falls with each further step, and teaches to write fewer); `mean`; `last`.
        """
        rows = []
        for prompt, text in zip(self._prompts(prompts, prompt_ids), completions, strict=True):
            ids, ends = list(prompt), []
            for step in (step for step in text.split(self.separator) if step.strip()):
                ids += [*self._ids(step), *self._ids(self.separator)]
                ends.append(len(ids) - 1)
            rows.append(_window(ids, ends))
        return [_over(chances.sigmoid(), over) for chances in self._scores(rows)]

    def _prompts(self, prompts: Sequence[Said], ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """The policy's own prompt tokens; of probes, which have none, the template's."""
        return [list(known) or self._asked(said) for said, known in zip(prompts, ids, strict=True)]

    def _asked(self, said: Said) -> list[int]:
        if not said:
            raise DataError(
                "a probe has no prompt",
                why="A reward model models an answer to a question.",
                cure="probes of {prompt: text or messages, completion, answer, pass}",
            )
        turns = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
        return self._ids(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _scores(self, rows: Sequence[Window]) -> list[torch.Tensor]:
        """Of each row, the float32 scores at its places, on the CPU."""
        longest = max((len(row.ids) for row in rows), default=0)
        if longest > self.reads_tokens:
            raise TrainingFailed(
                f"a prompt with its completion has {longest} tokens, the reward model reads {self.reads_tokens}",
                cure="a smaller finetune.reinforce.max_new_tokens or encode.window_tokens",
            )
        made: list[torch.Tensor] = []
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            counts = [row.trained_tokens for row in some]
            batch = batch_of(some, flat=self.trainee.flat, device=self.trainee.device)
            with torch.no_grad(), self.trainee.precision():
                made += scores(self.trainee.model, batch, batch.predict + 1).cpu().split(counts)
        return made


def scored_by(trained: TrainedReward, *, device: str) -> Callable[..., list[float]]:
    """The function of a reward model, with the parameters of its method."""
    scorer = open_scorer(trained, device=device)
    return scorer.process if trained.section.method == "process_reward" else scorer.outcome


def open_scorer(trained: TrainedReward, *, device: str) -> Scorer:
    """The trained model, every weight fixed. An adapter of a four-bit run is put on the base as it is, as it is served.

    Loading sets torch's seed: it happens before training.
    """
    from transformers import AutoConfig, AutoTokenizer

    section, folder = trained.section, trained.base.folder
    if section.lora is not None:
        section = replace(section, lora=replace(section.lora, quantize="none"))
    trainee = load_trainee(folder, section, device=device)
    name = next(name for name in WEIGHTS if name in trained.model.manifest.files)
    trainee.load(load_file(trained.model.file(name), device=device))
    trainee.model.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    limit = getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "max_position_embeddings", None)
    return Scorer(
        trainee=trainee, tokenizer=tokenizer, tail=_tail(tokenizer), separator=trained.step_separator,
        reads_tokens=limit or 1 << 30,
    )  # fmt: skip


def _tail(tokenizer: Any) -> list[int]:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    return tokenizer(text.rpartition(MARK)[2], add_special_tokens=False)["input_ids"]


def _window(ids: list[int], places: Sequence[int]) -> Window:
    """A row whose spans are the places where it is scored."""
    spans = tuple((place, place + 1) for place in places)
    return Window(ids=np.array(ids, np.int32), spans=spans, lengths=(len(ids),), row_ids=("",))


def _over(chances: torch.Tensor, over: str) -> float:
    if not len(chances):
        return 0.0
    return float(chances[-1] if over == "last" else getattr(chances, {"product": "prod"}.get(over, over))())
