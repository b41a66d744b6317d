"""Scoring: examples and a model at some offset -> Batch."""

from zoobj.scoring.scorer import Sampling, Scorer, check_needs

__all__ = ["Sampling", "Scorer", "check_needs"]
