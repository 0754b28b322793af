"""Reward functions: built in or by import path, each a versioned artifact with a calibration on labelled probes."""
