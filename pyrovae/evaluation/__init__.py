"""Evaluation by importance weighting: bounds on log p(x) per datum, their errors, and whether to believe them.

Everything takes any ``(model, guide)`` and reads only its log-weights. Nats per datum, higher is better.
"""

from pyrovae.evaluation.active_units import active_units
from pyrovae.evaluation.annealing import ais, bdmc
from pyrovae.evaluation.calibration import simulation_based_calibration
from pyrovae.evaluation.comparison import compare
from pyrovae.evaluation.diagnosis import diagnose, draws_needed, verdicts
from pyrovae.evaluation.gaps import inference_gaps
from pyrovae.evaluation.globals import evaluate_globals
from pyrovae.evaluation.imputation import impute
from pyrovae.evaluation.inference_data import to_inference_data
from pyrovae.evaluation.nuts import nuts
from pyrovae.evaluation.predictive import posterior_predictive_check
from pyrovae.evaluation.psis import psis
from pyrovae.evaluation.quasi import rqmc
from pyrovae.evaluation.results import evaluate
from pyrovae.evaluation.sampling import log_weights
from pyrovae.evaluation.surgery import collapsed_units, elbo_surgery, kl_per_dimension
from pyrovae.evaluation.units import bits_per_dimension

__all__ = [
    "active_units",
    "ais",
    "bdmc",
    "bits_per_dimension",
    "collapsed_units",
    "compare",
    "diagnose",
    "draws_needed",
    "elbo_surgery",
    "evaluate",
    "evaluate_globals",
    "impute",
    "inference_gaps",
    "kl_per_dimension",
    "log_weights",
    "nuts",
    "posterior_predictive_check",
    "psis",
    "rqmc",
    "simulation_based_calibration",
    "to_inference_data",
    "verdicts",
]
