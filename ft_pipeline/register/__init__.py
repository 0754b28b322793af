"""register. In: an adapter and its report. Out: `registered_model`: a version, a stage, a signed statement. Invariant: history is append-only."""
