"""Planning: what a run will need and cost, by formulas over the base model's shape; nothing is loaded, nothing is started."""
