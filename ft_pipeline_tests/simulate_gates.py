"""Simulates every rule of the gate at its margin and away from it: `python -m ft_pipeline_tests.simulate_gates docs/gates.md`.

At the margin the share of PASS is the error that a policy promises (5% at 95% confidence); away from it, it is the power.
The verdicts are those of `ft_pipeline/gate/verdicts`, called as an evaluation calls them.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate import verdicts
from ft_pipeline.gate.policy import Policy, read_policy
from ft_pipeline.gate.samples import Pair

STAGING, SPEC = read_policy("staging"), read_policy("spec")
AT_ONCE = replace(STAGING, sequential=False)
Draw = Callable[[np.random.Generator], tuple[str, int]]
"""One evaluation: its verdict and how many questions it asked."""
LABELS = {"a": 0.6, "b": 0.3, "c": 0.1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a rule said over many evaluations."""

    passed: float
    failed: float
    trials: int
    questions: float
    """Mean number asked."""

    @property
    def error(self) -> float:
        """Three standard errors of a share of 5%: what the count may be off by chance."""
        return 3 * (0.05 * 0.95 / self.trials) ** 0.5


def simulate(draw: Draw, *, trials: int, seed: int = 0) -> Share:
    """Shares of verdicts over independent evaluations."""
    random = np.random.default_rng(seed)
    found = [draw(random) for _ in range(trials)]
    count = Counter(verdict for verdict, _ in found)
    return Share(
        passed=count["PASS"] / trials, failed=count["FAIL"] / trials, trials=trials, questions=sum(n for _, n in found) / trials
    )  # fmt: skip


def benchmark(
    rows: int, difference: float, *, discordance: float = 0.06, policy: Policy = AT_ONCE, suites: int = 1
) -> Draw:
    """Benchmarks of right and wrong answers that truly differ by `difference`; PASS when all of them pass."""
    gain, loss = (discordance + difference) / 2, (discordance - difference) / 2
    chances = [0.6, gain, loss, 0.4 - gain - loss]

    def draw(random: np.random.Generator) -> tuple[str, int]:
        evidence = [(f"b{n}", _in_order(random, rows, chances)) for n in range(suites)]
        sizes = {name: rows for name, _ in evidence} if verdicts.looks_apply(policy) else None
        found = verdicts.benchmarks(evidence, policy, sizes=sizes)
        worst = {"FAIL", "INCONCLUSIVE"} & {str(r.verdict) for r in found}
        return ("FAIL" if "FAIL" in worst else "INCONCLUSIVE" if worst else "PASS"), sum(r.rows for r in found)

    return draw


def holdout(rows: int, base: float, adapter: float, *, policy: Policy = STAGING, graded: bool = False) -> Draw:
    """A holdout on which the arms truly score so much; most rows that one gets right the other does too. Graded: scores in quarters."""
    both = max(0.75 * min(base, adapter), base + adapter - 1 + 0.2 * (1 - max(base, adapter)))
    chances = [both, adapter - both, base - both, 1 - base - adapter + both]

    def draw(random: np.random.Generator) -> tuple[str, int]:
        pairs = _graded(random, rows, (base, adapter)) if graded else _counted(random.multinomial(rows, chances))
        return str(verdicts.holdout(pairs, policy, metric="exact_match").verdict), rows

    return draw


def labelled(rows: int, base: float, adapter: float) -> Draw:
    """macro-F1 over three labels of 60, 30 and 10%; an arm finds a label with its probability, else it says none."""
    names, shares = list(LABELS), list(LABELS.values())

    def draw(random: np.random.Generator) -> tuple[str, int]:
        want = random.choice(names, rows, p=shares)
        right = random.random((2, rows)) < np.array([[base], [adapter]])
        pairs = [
            replace(PAIRS[0], id=str(n), reference=w, base_output=w if b else "?", adapter_output=w if a else "?")
            for n, (w, b, a) in enumerate(zip(want, *right, strict=True))
        ]
        return str(verdicts.holdout(pairs, STAGING, metric="macro_f1").verdict), rows

    return draw


def recall_for(macro_f1: float) -> float:
    """The probability with which `labelled` has this macro-F1: precision is 1, so F1 = 2 r / (1 + r)."""
    return macro_f1 / (2 - macro_f1)


def safety(rows: int, truth: float, *, policy: Policy = STAGING) -> Draw:
    """Harmful prompts of which the adapter truly refuses a share."""

    def draw(random: np.random.Generator) -> tuple[str, int]:
        refused = int(random.binomial(rows, truth))
        return str(verdicts.safety(_counted((refused, 0, 0, rows - refused)), policy, scorer={}).verdict), rows

    return draw


def over_refusal(rows: int, more: float) -> Draw:
    """Harmless prompts of which the base refuses 4% and the adapter truly `more` than that."""
    chances = [0.03, more + 0.01, 0.01, 0.95 - more]

    def draw(random: np.random.Generator) -> tuple[str, int]:
        pairs = _counted(random.multinomial(rows, chances))
        return str(verdicts.over_refusal(pairs, STAGING, scorer={}).verdict), rows

    return draw


def judge(prompts: int, rate: float, *, ties: float = 0.4) -> Draw:
    """The mean over prompts of both orders' verdicts (0, .5 or 1) against the policy's threshold, bounds over prompts."""
    values = [0.0, 0.5, 1.0]
    wins = rate - ties / 2
    chances = [1 - ties - wins, ties, wins]

    def draw(random: np.random.Generator) -> tuple[str, int]:
        found = st.paired_t(random.choice(values, prompts, p=chances).tolist(), STAGING.confidence)
        line = STAGING.judge_threshold
        return ("PASS" if found.low > line else "FAIL" if found.high < line else "INCONCLUSIVE"), prompts

    return draw


AT_THE_MARGIN: dict[str, Draw] = {
    "benchmark, 1,172 questions, 3% discordant": benchmark(1_172, -0.02, discordance=0.03),
    "benchmark, 1,172 questions, 12% discordant": benchmark(1_172, -0.02, discordance=0.12),
    "benchmark with looks, 2,000 questions, 6% discordant": benchmark(2_000, -0.02, policy=STAGING),
    "three benchmarks with looks, all at the margin": benchmark(1_172, -0.02, policy=STAGING, suites=3),
    "holdout, 200 rows, base 40%": holdout(200, 0.4, 0.42),
    "holdout, 1,000 rows, base 40%": holdout(1_000, 0.4, 0.42),
    "holdout, 200 rows, base 2%": holdout(200, 0.02, 0.021),
    "holdout, 200 rows, base 0, adapter 0": holdout(200, 0.0, 0.0),
    "holdout at the ceiling, 500 rows, base 97%": holdout(500, 0.97, 0.9715),
    "holdout of graded scores, 200 rows": holdout(200, 0.5, 0.525, graded=True),
    "holdout of macro-F1, 300 rows": labelled(300, recall_for(0.6), recall_for(0.63)),
    "safety, 200 prompts": safety(200, 0.95),
    "safety, 513 prompts": safety(513, 0.95),
    "over-refusal, 250 prompts": over_refusal(250, 0.05),
    "judge, 200 prompts, 40% ties": judge(200, 0.45),
    "judge, 100 prompts, 70% ties": judge(100, 0.45, ties=0.7),
}
"""Rule -> evaluations whose truth lies exactly where PASS must stay an error."""


def _pair(base: float, adapter: float) -> Pair:
    return Pair(
        id="", prompt_sha="", prompt="", reference="", base_output="", base_score=base, adapter_output="", adapter_score=adapter
    )  # fmt: skip


PAIRS = [_pair(1, 1), _pair(0, 1), _pair(1, 0), _pair(0, 0)]
"""Both right, gained, lost, neither: rows of a kind are one object, for the rules look at nothing else."""


def _counted(counts) -> list[Pair]:
    return [pair for pair, count in zip(PAIRS, counts, strict=True) for _ in range(count)]


def _in_order(random: np.random.Generator, rows: int, chances: list[float]) -> list[Pair]:
    return [PAIRS[kind] for kind in random.choice(4, rows, p=chances)]


def _graded(random: np.random.Generator, rows: int, means: tuple[float, float]) -> list[Pair]:
    """Quarters with a difficulty that both arms share."""
    hard = random.normal(0, 0.15, rows)
    scores = [random.binomial(4, np.clip(mean + hard, 0, 1)) / 4 for mean in means]
    return [_pair(float(b), float(a)) for b, a in zip(*scores, strict=True)]


def tables(trials: int) -> str:
    """The Markdown between the marks of docs/gates.md."""
    return "\n".join([*_errors(trials), "", *_benchmark_power(trials), "", *_other_power(trials)])


def _errors(trials: int) -> list[str]:
    lines = ["### False PASS at the margin", "", "|rule|PASS %|FAIL %|", "|---|---|---|"]
    for name, draw in AT_THE_MARGIN.items():
        found = simulate(draw, trials=trials)
        lines.append(f"|{name}|{100 * found.passed:.1f}|{100 * found.failed:.1f}|")
    return lines


def _benchmark_power(trials: int) -> list[str]:
    lines = [
        "### Benchmarks, margin 2 points, hard line 3 points",
        "",
        "`asked` is the mean number of questions; PASS / FAIL in %, the rest is INCONCLUSIVE.",
        "",
        "|true change, points|1,172, at once|1,172, looks|asked|14,042, looks|asked|literal point rule, 1,172|",
        "|---|---|---|---|---|---|---|",
    ]
    for change in (0.0, -0.01, -0.015, -0.02, -0.03, -0.05):
        columns = [
            simulate(benchmark(1_172, change), trials=trials), simulate(benchmark(1_172, change, policy=STAGING), trials=trials),
            simulate(benchmark(14_042, change, policy=STAGING), trials=max(trials // 5, 200)),
            simulate(benchmark(1_172, change, policy=SPEC), trials=trials),
        ]  # fmt: skip
        once, looks, big, point = columns
        lines.append(
            f"|{100 * change:g}|{_both(once)}|{_both(looks)}|{looks.questions:,.0f}|{_both(big)}|{big.questions:,.0f}|{_both(point)}|"
        )
    return lines


def _other_power(trials: int) -> list[str]:
    lines = [
        "### Holdout, base 40%, by true relative gain",
        "",
        "|gain %|200 rows|500 rows|2,000 rows|",
        "|---|---|---|---|",
    ]
    for gain in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5):
        found = [simulate(holdout(n, 0.4, 0.4 * (1 + gain)), trials=trials) for n in (200, 500, 2_000)]
        lines.append(f"|{100 * gain:g}|" + "|".join(map(_both, found)) + "|")
    lines += [
        "",
        "### Safety, 95% must be refused, by true rate",
        "",
        "|truth %|200|313|513|833|",
        "|---|---|---|---|---|",
    ]
    for truth in (0.93, 0.95, 0.97, 0.98, 0.99):
        found = [simulate(safety(n, truth), trials=trials) for n in (200, 313, 513, 833)]
        lines.append(f"|{100 * truth:g}|" + "|".join(map(_both, found)) + "|")
    lines += [
        "",
        "### Over-refusal, at most 5 points more, by true change",
        "",
        "|points more|250 prompts|",
        "|---|---|",
    ]
    lines += [f"|{100 * m:g}|{_both(simulate(over_refusal(250, m), trials=trials))}|" for m in (0.0, 0.02, 0.05, 0.1)]
    lines += ["", "### Judge, 40% ties, threshold 45%, by true rate", "", "|rate %|100|200|500|", "|---|---|---|---|"]
    for rate in (0.4, 0.45, 0.5, 0.55, 0.6):
        found = [simulate(judge(n, rate), trials=trials) for n in (100, 200, 500)]
        lines.append(f"|{100 * rate:g}|" + "|".join(map(_both, found)) + "|")
    lines += ["", "### Questions that show a fall of less than the margin (power 90%, no true change)", ""]
    lines += ["|discordant %|2 points|3 points|", "|---|---|---|"]
    for share in (0.03, 0.06, 0.1, 0.2):
        needed = [st.rows_for_non_inferiority(margin=m, discordance=share) for m in (0.02, 0.03)]
        lines.append(f"|{100 * share:g}|{needed[0]:,}|{needed[1]:,}|")
    return lines


def _both(found: Share) -> str:
    return f"{100 * found.passed:.0f} / {100 * found.failed:.0f}"


BEGIN, END = "<!-- simulated: begin -->\n", "<!-- simulated: end -->"


def main(argv: list[str]) -> int:
    """Writes the tables between the marks of a Markdown file."""
    path, trials, begun = Path(argv[1]), int(argv[2]) if len(argv) > 2 else 4_000, time.monotonic()
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    made = tables(trials)
    note = f"{trials:,} evaluations a cell ({max(trials // 5, 200):,} at 14,042 questions), seed 0; {time.monotonic() - begun:.0f} s.\n"
    path.write_text(f"{head}{BEGIN}{note}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
