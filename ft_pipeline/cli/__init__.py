"""cli: what a person types. Stands on top of every room; the only place that prints."""
