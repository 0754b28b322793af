"""Sweeps: a recipe and a file of parameters in, ranked trials out. A trial is a whole recipe of its own, found again by its digest."""
