"""Intervals, tests and stopping rules behind the verdicts: pure functions of numbers. Every share is in [0, 1]."""

# one address for every kind
from ft_pipeline.gate.statistics.bootstrap import paired_bootstrap  # noqa: F401
from ft_pipeline.gate.statistics.intervals import (  # noqa: F401
    DIGITS,
    Interval,
    Pairs,
    clopper_pearson,
    count_pairs,
    holm,
    is_binary,
    mcnemar,
    p_value_below,
    paired_t,
    rounded,
    tango,
    tango_at,
    tango_z,
)
from ft_pipeline.gate.statistics.order import order  # noqa: F401
from ft_pipeline.gate.statistics.power import (  # noqa: F401
    most_failures,
    power_of_exact_rate,
    power_of_non_inferiority,
    rows_for_non_inferiority,
)
from ft_pipeline.gate.statistics.sequential import (  # noqa: F401
    Look,
    Plan,
    crossing_probability,
    look_verdict,
    looks,
    plan,
    pocock,
    sequential_p,
    walk,
)
from ft_pipeline.gate.statistics.strata import Stratum, clustered, p_value_of, strata_table, stratified  # noqa: F401
