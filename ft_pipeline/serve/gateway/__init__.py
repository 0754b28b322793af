"""gateway. In: OpenAI requests with a key. Out: answers of the vLLM fleet. Invariant: a caller reaches its own tenant's versions, by allowed paths and fields only."""
