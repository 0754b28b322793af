"""A base model moved: what changed, whether the adapter still fits, how both did before and now, and one verdict. No torch."""
