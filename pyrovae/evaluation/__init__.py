"""Evaluation by importance weighting: bounds on log p(x) per datum, their errors, and whether to believe them.

Everything takes any ``(model, guide)`` and reads only its log-weights. Nats per datum, higher is better.
"""

from pyrovae.evaluation.active_units import active_units
from pyrovae.evaluation.globals import evaluate_globals
from pyrovae.evaluation.imputation import impute
from pyrovae.evaluation.psis import psis
from pyrovae.evaluation.results import evaluate
from pyrovae.evaluation.sampling import log_weights
from pyrovae.evaluation.units import bits_per_dimension

__all__ = ["active_units", "bits_per_dimension", "evaluate", "evaluate_globals", "impute", "log_weights", "psis"]
