"""Scoring: examples and a model at some offset -> Batch."""

from zoobj.scoring.scorer import Sampling, Scorer

__all__ = ["Sampling", "Scorer"]
