"""Models that people train, one per file, for the benchmark of training.

Each file has three functions: ``data`` makes the data, ``build`` builds pyrovae's model and guide with random weights,
and ``by_hand`` makes a torch module that shares these weights and returns the loss in nats per datum, without Pyro and
without an objective of pyrovae. :mod:`experiments.benchmarks.trainers.numpyro_models` has the models for NumPyro.

This file does not import torch, because not all contenders use it.
"""

import importlib
from typing import Any, Literal, get_args

Name = Literal[
    "perceptron",
    "convolutional",
    "colour",
    "vampprior",
    "mixture",
    "flow_prior",
    "inverse_autoregressive",
    "counts",
    "two_layers",
    "markov",
]
NAMES: tuple[str, ...] = get_args(Name)


def model(name: str) -> Any:
    """Return the module of a model."""
    return importlib.import_module(f"{__name__}.{name}")
