"""The plugin of a vLLM replica: adapters come from the catalog, verified, and base rows on a CPU get no adapter's weights."""
