"""curate. In: raw rows. Out: `curated_dataset`: rows fit to train on in three splits. Invariant: every dropped or changed row is in the ledger."""
