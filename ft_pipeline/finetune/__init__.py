"""finetune. In: shards, a base model, a recipe. Out: `checkpoints`, then `adapter`. Invariant: nothing unfinished is ever published."""
