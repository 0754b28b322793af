"""The house's definitions with the steps of a run in one process: a test of the queue need not import everything twelve times a run."""

import dagster as dg

from ft_pipeline import definitions


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions.merge(definitions.build(), dg.Definitions(executor=dg.in_process_executor))
