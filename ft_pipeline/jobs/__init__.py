"""jobs. In: what a tenant asked for. Out: a recipe, its place in the queue, one run for each launch, and a status that is true everywhere."""
