"""From paired scores to verdicts: one file per kind of gate, and the one verdict over all of them. Pure values, no I/O."""

# one address for every kind
from ft_pipeline.gate.verdicts.benchmark import benchmarks, looks_apply, looks_of  # noqa: F401
from ft_pipeline.gate.verdicts.holdout import holdout  # noqa: F401
from ft_pipeline.gate.verdicts.judge import judge  # noqa: F401
from ft_pipeline.gate.verdicts.overall import broken, overall, skipped, with_noise  # noqa: F401
from ft_pipeline.gate.verdicts.safety import over_refusal, safety  # noqa: F401
