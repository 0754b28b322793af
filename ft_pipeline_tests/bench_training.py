"""`make bench`, the training loop: steps of ours and of TRL's trainers over the same rows, overhead, checkpoint stall, seeking.

The clock of a trainer runs from its first step to its last one; of ours from the call to the return, saver and thread included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ft_pipeline_tests import tiny
from ft_pipeline_tests.bench_board import LAPS, Lap

WINDOW_TOKENS, MICRO, EPOCHS = 256, 8, 3
SIZES = {"0.1 M": (64, 2, 384), "6 M": (256, 6, 4096)}
"""Hidden width, layers, vocabulary."""
ROUNDS = {"0.1 M": 5, "6 M": 2}
SETTINGS = {
    "num_train_epochs": EPOCHS, "learning_rate": 1e-3, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "report_to": "none",
    "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1000, "max_grad_norm": 1.0, "optim": "adamw_torch_fused",
}  # fmt: skip
"""TRL without what costs time and teaches nothing."""
pytestmark = pytest.mark.timeout(900)
numbers = count()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    import torch

    torch.set_num_threads(2)
    root = tmp_path_factory.mktemp("bases")
    return {name: base_folder(root / name.replace(" ", ""), *SIZES[name]) for name in SIZES}


def base_folder(path: Path, *size: int) -> Path:
    """A random Llama of a size with the tiny tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, vocabulary = size
    tiny.tokenizer_folder(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 64, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    weights = {n: t for n, t in LlamaForCausalLM(config).state_dict().items() if n != "lm_head.weight"}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def windows() -> list[Any]:
    """16 windows of 256 tokens, packed from rows of 40 tokens on average, the last quarter of each trained."""
    from ft_pipeline.encode.artifact import Window
    from ft_pipeline.encode.pack import pack

    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(3.4, 0.7, 200), 6, WINDOW_TOKENS).astype(int).tolist()
    made = []
    for rows in islice(pack(lengths, window_tokens=WINDOW_TOKENS, seed=0), 16):
        ends = np.cumsum([lengths[r] for r in rows]).tolist()
        spans = tuple((end - max(1, lengths[r] // 4), end) for r, end in zip(rows, ends, strict=True))
        ids = draw.integers(6, 384, ends[-1]).astype(np.int32)
        sizes, names = tuple(lengths[r] for r in rows), tuple(f"r{r}" for r in rows)
        made.append(Window(ids=ids, spans=spans, lengths=sizes, row_ids=names))
    return made


def section(**changes: Any) -> Any:
    """LoRA on every linear layer, as both train it."""
    return tiny.recipe(
        **{"epochs": EPOCHS, "windows_per_step": MICRO, "windows_per_micro": MICRO, "learning_rate": 1e-3, **changes}
    ).finetune


def our_run(folder: Path, items: list[Any], work: Path, **given: Any) -> Any:
    """A Run over these items, ready."""
    from ft_pipeline.finetune.checkpoint import Checkpoints
    from ft_pipeline.finetune.loop import Run, make_deterministic
    from ft_pipeline.finetune.methods.causal import Causal
    from ft_pipeline.finetune.metrics import Metrics
    from ft_pipeline.finetune.model import load_trainee
    from ft_pipeline.finetune.schedule import Schedule
    from ft_pipeline.workers.messages import ignore

    wanted = given.get("section") or section()
    make_deterministic(2)
    run_folder = work / f"run-{next(numbers)}"
    run_folder.mkdir(parents=True)
    schedule = Schedule(section=wanted, windows=len(items))
    return Run(
        trainee=load_trainee(folder, wanted), method=given.get("method") or Causal(run_folder), schedule=schedule, train=items,
        validation=[], stop=Never(), metrics=Metrics(folder=run_folder, steps=schedule.steps, listener=ignore),
        checkpoints=Checkpoints(run_folder / "checkpoints", "f" * 64, ignore, every_steps=given.get("every", 500)),
    )  # fmt: skip


class Never:
    """A stop that nobody asks for."""

    asked = False


def seconds_of_ours(make: Callable[[], Any]) -> tuple[float, int, float]:
    """Seconds, steps, and seconds of the processor: these a machine that others use disturbs least."""
    from ft_pipeline.finetune.loop import train

    run = make()
    started, before = time.monotonic(), time.process_time()
    train(run)
    return time.monotonic() - started, run.schedule.steps, time.process_time() - before


def seconds_of_trl(make: Callable[[Any], Any]) -> tuple[float, int, float]:
    """As seconds_of_ours, from the first step of a TRL trainer to its last. `make` takes the callback."""
    from transformers import TrainerCallback

    @dataclass
    class Clock(TrainerCallback):
        at: list[tuple[float, float]] = field(default_factory=list)

        def on_step_begin(self, *_args: Any, **_options: Any) -> None:
            self.at.append((time.monotonic(), time.process_time()))

        def on_step_end(self, *_args: Any, **_options: Any) -> None:
            self.at.append((time.monotonic(), time.process_time()))

    clock = Clock()
    trainer = make(clock)
    trainer.train()
    (start, before), (end, after) = clock.at[0], clock.at[-1]
    return end - start, trainer.state.global_step, after - before


def race(benchmark: Any, name: str, who: str, seconds: Callable[[], tuple[float, int, float]], **told: Any) -> float:
    """Notes the best round of a contender, by its own clock."""
    found = [seconds() for _ in range(told["rounds"])]
    benchmark.group = name
    benchmark.pedantic(lambda: None, rounds=1)
    best, steps, _ = min(found)
    processor = min(one[2] for one in found)
    rate = f"{told['amount'] / best:,.0f} {told['unit']}/s"
    LAPS.setdefault(name, []).append(
        Lap(who, best, rate, f"a step {1e3 * best / steps:.1f} ms, {1e3 * processor / steps:.1f} of CPU")
    )
    return best


def lora_model(folder: Path) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.use_deterministic_algorithms(False)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)


def labelled(windows: list[Any]) -> list[dict[str, Any]]:
    from ft_pipeline.finetune.batches import single_rows

    rows = []
    for row in (row for window in windows for row in single_rows(window)):
        labels = np.full(len(row.ids), -100)
        for start, end in row.spans:
            labels[start:end] = row.ids[start:end]
        rows.append({"input_ids": row.ids.tolist(), "labels": labels.tolist()})
    return rows


def sft_trainer(folder: Path, windows: list[Any], work: Path, **settings: Any) -> Callable[[Any], Any]:
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    rows = labelled(windows)
    packed = settings.get("packing", False)
    size = MICRO if packed else len(rows) * MICRO // len(windows)
    config = SFTConfig(
        output_dir=str(work / "trl"), max_length=WINDOW_TOKENS if packed else None, per_device_train_batch_size=size, dataloader_drop_last=True,
        **SETTINGS, **settings,
    )  # fmt: skip
    return lambda clock: SFTTrainer(
        model=lora_model(folder), args=config, train_dataset=Dataset.from_list(rows), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip


SFT: dict[str, dict[str, Any] | None] = {
    "finetune.loop": None,
    "TRL SFTTrainer, packed (bfd)": {"packing": True, "packing_strategy": "bfd"},
    "TRL SFTTrainer, padded, rows of like length together": {"train_sampling_strategy": "group_by_length"},
    "TRL SFTTrainer, padding-free": {"padding_free": True},
}


@pytest.mark.parametrize("who", SFT)
@pytest.mark.parametrize("size", SIZES)
def test_supervised_steps(benchmark, folders, windows, tmp_path, size: str, who: str) -> None:
    folder, settings = folders[size], SFT[who]
    if settings is None:
        seconds = lambda: seconds_of_ours(lambda: our_run(folder, windows, tmp_path))  # noqa: E731
    else:
        made = sft_trainer(folder, windows, tmp_path, **settings)
        seconds = lambda: seconds_of_trl(made)  # noqa: E731
    tokens = EPOCHS * sum(len(w.ids) for w in windows)
    race(
        benchmark, f"SFT, LoRA, {size} weights, {tokens:,} tokens", who, seconds, rounds=ROUNDS[size], amount=tokens,
        unit="tokens",
    )  # fmt: skip


@pytest.fixture(scope="module")
def preferred(tmp_path_factory, folders) -> Iterator[dict[str, Any]]:
    """Per size: our method with its reference, the items, and where TRL finds the same base."""
    from ft_pipeline.finetune.methods.method import method_of
    from ft_pipeline.recipe import Preference
    from ft_pipeline.store.artifacts import Store
    from ft_pipeline.store.files import Bucket

    root, made = tmp_path_factory.mktemp("pairs"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_MLFLOW", "off")
        store = Store(Bucket(str(root / "store")), root / "work")
        for size, folder in folders.items():
            base = tiny.publish_base(store, folder)
            shards = tiny.publish_shards(
                store, tiny.publish_curated(store, tiny.pair_rows(64), shape="preference"), base
            )
            changes = {"method": "dpo", "preference": Preference(beta=0.1), "epochs": EPOCHS, "windows_per_step": MICRO}
            whole = tiny.recipe(**changes, windows_per_micro=MICRO, learning_rate=1e-3)
            job = tiny.train_job_here(store, whole, {"shards": shards, "base": base})
            reference = store.fetch(job.spec.parents["reference"])
            method = method_of(whole.finetune, cache=root / size.replace(" ", ""), reference=reference)
            made[size] = (method, list(method.items(shards, "train")), whole.finetune)
    yield made


def dpo_trainer(folder: Path, work: Path, **settings: Any) -> Callable[[Any], Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(work / "trl"), per_device_train_batch_size=MICRO, beta=0.1, precompute_ref_log_probs=True, max_length=None,
        dataset_num_proc=None, **SETTINGS, **settings,
    )  # fmt: skip
    return lambda clock: DPOTrainer(
        model=lora_model(folder), args=config, train_dataset=Dataset.from_list(tiny.pair_rows(64)), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip


DPO: dict[str, dict[str, Any] | None] = {
    "finetune.loop, dpo": None,
    "TRL DPOTrainer, reference precomputed": {},
}


@pytest.mark.parametrize("who", DPO)
@pytest.mark.parametrize("size", SIZES)
def test_preference_steps(benchmark, folders, preferred, tmp_path, size: str, who: str) -> None:
    (method, items, wanted), settings = preferred[size], DPO[who]
    if settings is None:
        given = {"method": method, "section": wanted}
        seconds = lambda: seconds_of_ours(lambda: our_run(folders[size], items, tmp_path, **given))  # noqa: E731
    else:
        made = dpo_trainer(folders[size], tmp_path, **settings)
        seconds = lambda: seconds_of_trl(made)  # noqa: E731
    amount = EPOCHS * len(items)
    race(
        benchmark, f"DPO, LoRA, {size} weights, {amount} pairs", who, seconds, rounds=ROUNDS[size], amount=amount, unit="pairs"
    )  # fmt: skip


def bare_steps(run: Any) -> float:
    """Seconds of the same steps without the loop: batches made before, forward, backward, clip, AdamW; one rate, nothing told."""
    import torch

    from ft_pipeline.finetune.updates import _adamw

    trainee, schedule, optimizer = run.trainee, run.schedule, _adamw(run.trainee)
    groups = [
        [[run.train[i] for i in schedule.windows_of(step * schedule.micros_per_step + n)] for n in range(schedule.micros_per_step)]
        for step in range(schedule.steps)
    ]  # fmt: skip
    batches = [[run.method.batch(trainee, items) for items in group] for group in groups]
    started = time.monotonic()
    for group in batches:
        for batch in group:
            (run.method.loss(trainee, batch).total / 1000).backward()
        torch.nn.utils.clip_grad_norm_(trainee.trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.monotonic() - started


def test_overhead_of_a_step(benchmark, folders, windows, tmp_path) -> None:
    """The loop around the model: schedule, batches, seeds, checks, metrics file; best of rounds that alternate."""
    make = lambda: our_run(folders["0.1 M"], windows, tmp_path, section=section(epochs=16))  # noqa: E731
    pairs = [(seconds_of_ours(make), bare_steps(make())) for _ in range(4)]
    (whole, steps, _), bare = min(p[0] for p in pairs), min(p[1] for p in pairs)
    name = f"{steps} steps of the 0.1 M model: the loop, and forward, backward and AdamW alone"
    benchmark.group = name
    benchmark.pedantic(lambda: None, rounds=1)
    over = f"{1e6 * (whole - bare) / steps:,.0f} us a step, {(whole - bare) / whole:.1%}"
    LAPS[name] = [Lap("finetune.loop", whole, "", over), Lap("the model alone", bare, "", "")]


def test_checkpoint_stall(benchmark, folders, windows, tmp_path) -> None:
    """What the training thread waits for a save of the 6 M model, every weight trained (weights and Adam: 12 bytes each)."""
    from ft_pipeline.finetune.loop import train

    run = our_run(folders["6 M"], windows, tmp_path, section=section(lora=None), every=2)
    train(run)
    name = "Saving a checkpoint of 6 M trained weights, in the background"
    benchmark.group = name
    benchmark.pedantic(lambda: None, rounds=1)
    best = min(run.metrics.saves, key=lambda saved: saved.stall_seconds)
    share = best.stall_seconds / (500 * run.metrics.training_seconds / run.metrics.done_steps)
    LAPS[name] = [
        Lap("stall of the training thread", best.stall_seconds, f"{best.size / 1e6:.0f} MB", f"{share:.3%} of 500 steps"),
        Lap("hashing and writing beside it", best.write_seconds, "", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("who", ["finetune.schedule", "accelerate.skip_first_batches, no rows read"])
def test_seeking_to_step_a_million(lap, who: str) -> None:
    from accelerate import skip_first_batches
    from torch.utils.data import DataLoader

    from ft_pipeline.finetune import schedule

    whole = schedule.Schedule(section=section(epochs=4), windows=4_000_000)

    def ours() -> Any:
        schedule.order.cache_clear()
        return whole.windows_of(1_000_000)

    def theirs() -> Any:
        return next(iter(skip_first_batches(DataLoader(range(10_000_000), batch_size=8, shuffle=True), 1_000_000)))

    lap(
        "The rows of step 1,000,000, 8 windows a step",
        who,
        ours if who.startswith("finetune") else theirs,
        rounds=2,
        warmup=0,
    )
