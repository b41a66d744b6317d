"""Methods: which offsets to score, and what their values say. One method a file."""

from zoobj.estimators.base import Estimator
from zoobj.estimators.first_order import FirstOrder

CATALOGUE = {
    "adalomo": "zoobj.estimators.adalomo:AdaLomo",
    "fo-adam": "zoobj.estimators.fo_adam:FOAdam",
    "fo-sgd": "zoobj.estimators.fo_sgd:FOSGD",
    "forward-grad": "zoobj.estimators.forward_grad:ForwardGrad",
    "lomo": "zoobj.estimators.lomo:LOMO",
    "one-point": "zoobj.estimators.one_point:OnePoint",
    "population": "zoobj.estimators.population:Population",
    "zo-adam": "zoobj.estimators.zo_adam:ZOAdam",
    "zo-conservative": "zoobj.estimators.zo_conservative:ZOConservative",
    "zo-momentum": "zoobj.estimators.zo_momentum:ZOMomentum",
    "zo-sgd": "zoobj.estimators.zo_sgd:ZOSGD",
    "zo-sign": "zoobj.estimators.zo_sign:ZOSign",
    "zo-svrg": "zoobj.estimators.zo_svrg:ZOSVRG",
}

__all__ = ["CATALOGUE", "Estimator", "FirstOrder"]
