"""Ablations: variants of params.yaml over seeds, by `dvc exp run` and `dvc exp show` (docs/experiments.md)."""
