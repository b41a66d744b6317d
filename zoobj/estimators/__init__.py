"""Methods: which offsets to score, and what their values say. One method a file."""

from zoobj.estimators.base import Estimator

CATALOGUE = {
    "population": "zoobj.estimators.population:Population",
    "zo-sgd": "zoobj.estimators.zo_sgd:ZOSGD",
}

__all__ = ["CATALOGUE", "Estimator"]
