"""gate. In: an adapter, its base model, the holdout, the suites. Out: `eval_report`. Invariant: a verdict without evidence is never PASS."""
