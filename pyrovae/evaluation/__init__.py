"""Evaluation of models and guides: estimates of log p(x) for each datum, with errors and diagnostics.

Estimators take any pair of Pyro programs ``(model, guide)``. A function with the arguments ``(model, guide, x)`` also
accepts ``(vae, x)``, where ``vae`` is a module with the attributes ``model`` and ``guide``. Bounds are in nats per
datum, and higher is better.

:class:`Options` describes the options that all estimators share: ``plate``, ``memory``, ``seed``, ``progress``,
``checkpoint`` and others.
"""

from pyrovae.evaluation.diagnostics.active_units import active_units
from pyrovae.evaluation.diagnostics.bits import bits_per_dimension
from pyrovae.evaluation.diagnostics.calibration import simulation_based_calibration
from pyrovae.evaluation.diagnostics.compare import compare
from pyrovae.evaluation.diagnostics.gaps import inference_gaps
from pyrovae.evaluation.diagnostics.kl_per_dimension import collapsed_units, kl_per_dimension
from pyrovae.evaluation.diagnostics.psis import psis
from pyrovae.evaluation.diagnostics.surgery import elbo_surgery
from pyrovae.evaluation.diagnostics.typicality import typicality
from pyrovae.evaluation.diagnostics.verdicts import diagnose, draws_needed, verdicts
from pyrovae.evaluation.estimators.ais import ais, bdmc
from pyrovae.evaluation.estimators.cascade import log_likelihood
from pyrovae.evaluation.estimators.global_latents import evaluate_globals
from pyrovae.evaluation.estimators.importance import evaluate, log_weights
from pyrovae.evaluation.estimators.nuts import nuts
from pyrovae.evaluation.estimators.rqmc import rqmc
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.posterior.imputation import impute
from pyrovae.evaluation.posterior.inference_data import to_inference_data
from pyrovae.evaluation.posterior.predictive import posterior_predictive_check
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report

__all__ = [
    "Options",
    "Problem",
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
    "log_likelihood",
    "log_weights",
    "nuts",
    "posterior_predictive_check",
    "psis",
    "report",
    "rqmc",
    "simulation_based_calibration",
    "to_inference_data",
    "typicality",
    "verdicts",
]
