"""Scoring: examples and a model at some offset -> Batch."""

from zoobj.scoring.generation import Sampling
from zoobj.scoring.scorer import Scorer, as_batch, check_needs

__all__ = ["Sampling", "Scorer", "as_batch", "check_needs"]
