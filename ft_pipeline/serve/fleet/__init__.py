"""fleet. In: catalog and inventory. Out: vLLM replicas that hold what is in production, and a report. Invariant: the catalog decides."""
