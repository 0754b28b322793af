"""LLM fine-tuning that can be trusted: from a dirty dataset to a served, gated, signed adapter."""
