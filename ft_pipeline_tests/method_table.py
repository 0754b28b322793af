"""`python -m ft_pipeline_tests.method_table`: runs the tests behind each cell of the table of methods, and writes docs/methods.md and the README's table from what passed.

python -m ft_pipeline_tests.method_table              runs them all (a quarter of an hour on two cores)
python -m ft_pipeline_tests.method_table REPORT.xml   reads a JUnit report of a run that was made already
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PAGE, README = PROJECT / "docs" / "methods.md", PROJECT / "README.md"
BEGIN, END = "<!-- methods: written by ft_pipeline_tests.method_table -->\n", "<!-- end of methods -->\n"
FOLDER = "ft_pipeline_tests/finetune"
RESUMES, POLICY = (
    "test_methods_resume.py::test_a_stop_in_the_middle_changes_no_byte",
    "test_policy.py::test_a_stopped_run_of_each_method",
)
RANKS = "test_parallel.py::test_two_processes_train_as_one_does"
LOWERS = "test_loop.py::test_training_lowers_the_validation_loss_and_changes_what_it_should"
SIGTERM = "test_parallel.py::test_sigterm_at_one_process_stops_both_after_the_same_step_and_they_resume_bit_for_bit"
GROWS = "test_preference.py::test_margin_and_accuracy_grow"
JUDGES = "test_process_reward.py::test_right_steps_are_told_from_wrong_ones"
CYCLE = "test_policy_cycles.py::test_a_stop_at_each_step_of_a_cycle_ends_in_the_same_bytes"
REPLICAS = "test_policy_ranks.py::test_two_processes_train_a_policy_as_one_does"
PULLED = "test_policy.py::test_a_student_comes_closer_to_its_teacher_on_completions_of_its_own"
LEARNS = "test_policy_learns.py::test_the_rate_of_right_answers_rises"
COLUMNS = ("improves its objective", "resumes bit for bit", "2 processes = 1")

Cell = tuple[str, ...]
"""Beginnings of test names; every test that begins so must have passed."""
ROWS: Mapping[tuple[str, str], tuple[Cell, Cell, Cell]] = {
    ("sft", "full"): ((f"{LOWERS}[None]",), (f"{SIGTERM}[sft full",), (f"{RANKS}[sft full",)),
    ("sft", "LoRA"): ((f"{LOWERS}[lora0]",), (f"{RESUMES}[sft]",), (f"{RANKS}[sft lora",)),
    ("sft", "DoRA"): ((f"{LOWERS}[lora2]",), (f"{RESUMES}[sft dora]",), (f"{RANKS}_by_every_method[sft dora",)),
    ("sft", "QLoRA (NF4)"): (("test_quantize.py::test_a_recipe_of_nf4",), (f"{RESUMES}[sft qlora]",), (f"{RANKS}_by_every_method[sft qlora",)),
    ("cpt", "full"): (("test_adapter.py::test_text_rows_are_trained_by_cpt",), (f"{RESUMES}[cpt full]",), (f"{RANKS}_by_every_method[cpt full",)),
    ("dpo", "LoRA"): (tuple(f"{GROWS}[dpo-changes{n}]" for n in (0, 2, 3)), (f"{RESUMES}[dpo]",), (f"{RANKS}[dpo lora",)),
    ("dpo", "full"): ((f"{GROWS}[dpo-changes1]",), (f"{RESUMES}[dpo full]",), (f"{RANKS}_by_every_method[dpo full",)),
    ("simpo", "LoRA"): ((f"{GROWS}[simpo",), (f"{RESUMES}[simpo]",), (f"{RANKS}_by_every_method[simpo",)),
    ("orpo", "LoRA"): ((f"{GROWS}[orpo",), (f"{RESUMES}[orpo]",), (f"{RANKS}_by_every_method[orpo",)),
    ("kto", "LoRA"): (("test_kto.py::test_wanted_answers",), (f"{RESUMES}[kto]",), (f"{RANKS}_by_every_method[kto",)),
    ("reward", "LoRA"): (("test_reward.py::test_the_accuracy_comes_near_one[True]",), (f"{RESUMES}[reward]",), (f"{RANKS}_by_every_method[reward",)),
    ("reward", "full"): (("test_reward.py::test_the_accuracy_comes_near_one[False]",), (f"{RESUMES}[reward full]",), ()),
    ("process_reward", "LoRA"): ((f"{JUDGES}[True]",), (f"{RESUMES}[process_reward]",), (f"{RANKS}_by_every_method[process_reward",)),
    ("process_reward", "full"): ((f"{JUDGES}[False]",), (f"{RESUMES}[process_reward full]",), ()),
    ("distill", "LoRA"): (("test_distill.py::test_the_divergence_falls[changes3",), (f"{RESUMES}[distill]",), (f"{RANKS}_by_every_method[distill lora",)),
    ("distill", "full"): (("test_distill.py::test_the_divergence_falls[changes0",), (f"{RESUMES}[distill full]",), (f"{RANKS}_by_every_method[distill full",)),
    **{
        (name, "LoRA"): (
            (f"{LEARNS}[{name}]",),
            (f"{POLICY}_ends_in_the_same_bytes_and_rollouts[{name}-lora", f"{CYCLE}[{name}-lora"),
            (f"{REPLICAS}[{name}]",),
        )
        for name in ("grpo", "dr_grpo", "dapo", "gspo", "bnpo", "rloo", "remax", "ppo", "kdrl")
    },
    **{
        (name, "full"): ((), (f"{POLICY}_ends_in_the_same_bytes_and_rollouts[{name}-None", f"{CYCLE}[{name}-None"), ())
        for name in ("grpo", "remax", "ppo", "kdrl")
    },
    ("on_policy_distill", "LoRA"): (
        (f"{PULLED}[lora]",),
        (f"{POLICY}_ends_in_the_same_bytes_and_rollouts[on_policy_distill-lora", f"{CYCLE}[on_policy_distill-lora"),
        (),
    ),
    ("on_policy_distill", "full"): ((f"{PULLED}[full]",), (), ()),
}  # fmt: skip
"""(method, weights) -> the tests of each column. An empty cell: no test claims it."""


def table(passed: Mapping[str, bool]) -> str:
    """The page. `passed`: test name below the folder -> whether it passed."""
    lines = [
        "# Methods, and what was run of each",
        "",
        "Written by `python -m ft_pipeline_tests.method_table` from tests that ran on a CPU with tiny models: yes (how many tests passed),",
        "FAILED, or - where no test claims it. Two processes are compared with one as replicas and as FSDP2 shards, of policies as replicas. What may be combined",
        "with what is in `ft_pipeline/finetune/compatibility.yaml`.",
        "",
        rows(passed),
    ]
    return "\n".join(lines)


def rows(passed: Mapping[str, bool]) -> str:
    """The table alone: what stands in the README too."""
    lines = [
        f"| method | weights | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
    ]
    for (method, weights), cells in ROWS.items():
        lines.append(f"| {method} | {weights} | {' | '.join(_said(cell, passed) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def in_readme(text: str, found: str) -> str:
    """The README with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + found + END + rest.partition(END)[2]


def tests_of(cell: Cell, known: Mapping[str, bool]) -> list[str]:
    """The tests that stand behind a cell."""
    return [name for name in known if any(name.startswith(start) for start in cell)]


def _said(cell: Cell, passed: Mapping[str, bool]) -> str:
    found = tests_of(cell, passed)
    if not found:
        return "-"
    return f"yes ({len(found)})" if all(passed[name] for name in found) else "FAILED"


def read_report(path: Path) -> dict[str, bool]:
    """Test name below the folder -> whether it passed; skipped ones are left out."""
    found = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        if case.find("skipped") is None:
            name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
            found[name] = case.find("failure") is None and case.find("error") is None
    return found


def main(words: list[str]) -> int:
    """Writes the page; 1 when a test of the table failed."""
    if words:
        passed = read_report(Path(words[0]))
    else:
        files = sorted(
            {f"{FOLDER}/{start.partition('::')[0]}" for cells in ROWS.values() for cell in cells for start in cell}
        )
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"--junitxml={report}", *files]
            subprocess.run(command, cwd=PROJECT, check=False)
            passed = read_report(report)
    page = table(passed)
    PAGE.write_text(page, encoding="utf-8")
    README.write_text(in_readme(README.read_text(encoding="utf-8"), rows(passed)), encoding="utf-8")
    print(page)
    return int("| FAILED" in page)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
