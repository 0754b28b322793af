"""A judge that is a model of the store, through transformers."""

from __future__ import annotations

import pytest

from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.gate.judge_config import judge_refs, model_ref, reach
from ft_pipeline.judging.forms import HARM, Form
from ft_pipeline.judging.judge import NoReply, ask
from ft_pipeline.judging.local import LocalModel
from ft_pipeline.recipe import Gate, Judge, JudgeGate
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import tiny


def test_a_local_model_answers_the_same_words_twice_and_refuses_what_does_not_fit(tmp_path) -> None:
    folder = tiny.base_folder(tmp_path / "judge")
    model = LocalModel(folder, max_new_tokens=3)
    short = Form(name="short", user="{prompt} {answer}", marks=HARM.marks)
    first, second = (model.say(short, {"prompt": "json?", "answer": "zipfile"}) for _ in range(2))
    assert first.text == second.text and first.usage["completion_tokens"] == 3
    with pytest.raises(NoReply, match=r"refused: \d+ tokens and 3 new ones exceed the model's 512"):
        model.say(short, {"prompt": "zip " * 600, "answer": ""})
    assert ask(model, short, {"prompt": "zip " * 600, "answer": ""}).error.startswith("refused")


def test_a_local_judge_is_a_model_of_the_store_by_its_digest(home, store) -> None:
    made = []
    for content in ("a", "b"):
        with store.publish(Spec(kind="base_model", config={"content": content}, parents={}, code="t")) as draft:
            (draft.folder / "config.json").write_text(content)
        made.append(draft.artifact.ref)
    assert model_ref(store, made[0].digest[:10]) == made[0]
    gate = Gate(policy="dev", judge=JudgeGate(judge=Judge(kind="local", model=made[1].digest)))
    assert judge_refs(gate, store, home) == {"judge_model": made[1]} and reach(gate)["judge_model"]["attempts"] == 5
    with pytest.raises(NotFoundError, match=f"no base model 'ffff00' in the store .*{made[0].digest[:12]}"):
        model_ref(store, "ffff00")
    with pytest.raises(UserError, match="fits 2 models"):
        model_ref(store, "")
