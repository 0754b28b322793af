"""encode. In: curated rows and the base model's tokenizer and template. Out: `packed_shards`. Invariant: every token is traced to a row id."""
