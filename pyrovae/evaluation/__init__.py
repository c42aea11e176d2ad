"""Evaluation by importance weighting: bounds on log p(x) per datum, their errors, and whether to believe them.

Everything takes any ``(model, guide)`` and reads only its log-weights. Nats per datum, higher is better.
"""

from pyrovae.evaluation.active_units import active_units
from pyrovae.evaluation.psis import psis
from pyrovae.evaluation.results import evaluate
from pyrovae.evaluation.sampling import log_weights

__all__ = ["active_units", "evaluate", "log_weights", "psis"]
