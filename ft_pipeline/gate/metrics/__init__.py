"""How near an answer comes to its reference: one file per family, found by the name in the recipe."""

# one address for every kind
from ft_pipeline.gate.metrics.metric import Corpus, Metric  # noqa: F401
from ft_pipeline.gate.metrics.named import corpus_of, metric_of  # noqa: F401
