"""acquire. In: a URI and a revision. Out: `raw_dataset` and `base_model` artifacts. Invariant: bytes are never changed, only named by digest."""
