"""Opinions of models on answers: which of two is better, whether one is safe, whether one refuses. Below every room; no torch at load."""
