"""The loss without its gradient: a check of all data before the first step, and the bound on validation data."""

import math
from typing import Any

import pyro
from pyro import poutine
from torch import nn

from pyrovae.distributions.columns import names_column
from pyrovae.isolation import isolated
from pyrovae.training.batches import Batches
from pyrovae.training.gradients import Gradients
from pyrovae.training.losses import Loss
from pyrovae.training.nonfinite import NonFiniteFinder, NotFiniteError, are_finite
from pyrovae.training.state import Tensors

# Seed of the noise on validation data. It is large, because users draw data under small seeds, and equal seeds would
# correlate the noise with the data.
NOISE_SEED = 6_364_136_223_846_793_005


def check_data(loss: Loss, batches: Batches, tensors: Tensors) -> None:
    """Run the loss once on all data with Pyro's validation, and find the parameters that programs keep in Pyro's store.

    Raises:
        ValueError: If the log-density of the data cannot be computed, because values in the data are NaN, too large, or
            outside the support of a distribution.
        FloatingPointError: If a parameter is NaN or infinite.
    """
    with isolated(*loss.programs, seed=0), poutine.trace(param_only=True) as capture:
        for batch in batches:
            try:
                is_finite = loss.check(batch, len(batches.source))
            except FloatingPointError as error:
                batches.check()
                _check_scale(error, tensors.module, batch)
                raise
            except (ValueError, RuntimeError) as error:
                if not names_column(error):  # NaN marks missing values in a table, and is then not the cause
                    batches.check(error)
                raise
            if not is_finite:
                batches.check()
    known = {id(tensor) for tensor in (*tensors.module.parameters(), *tensors.stored.values())}
    for name, site in capture.trace.nodes.items():
        value: Any = site["value"]
        tensor = value.unconstrained()
        if id(tensor) not in known:
            tensors.keep(name, tensor)
            known.add(id(tensor))


def mean_bound(gradients: Gradients, loss: Loss, batches: Batches) -> float:
    """Return the mean bound of the data, nats per datum; every call uses the same noise.

    Raises:
        NotFiniteError: If the bound is not finite.
    """
    gradients.sync_buffers()
    with isolated(*loss.programs, seed=NOISE_SEED):
        total = sum(gradients.value(batch) * len(batch[0]) / loss.data_count(batch) for batch in batches)
    bound = -total / len(batches.source)
    if not math.isfinite(bound):
        with isolated(*loss.programs, seed=NOISE_SEED), NonFiniteFinder() as finder, pyro.validation_enabled(False):
            for batch in batches:
                loss.value(batch)
        raise NotFiniteError(finder.explain(loss.name, bound))
    return bound


def _check_scale(error: FloatingPointError, module: nn.Module, batch: tuple[object, ...]) -> None:
    """Raise ValueError with the advice to rescale the data, if all parameters and buffers of the module are finite.

    Args:
        error: Error that a program raised on the batch before the first step, because a value is NaN or infinite.
        module: The module that is trained.
        batch: The batch.

    Raises:
        ValueError: If all parameters and buffers of the module are finite.
    """
    if not are_finite([*module.parameters(), *module.buffers()]):
        return
    x = batch[0]
    cause = str(error).partition(": ")[2].partition(". ")[0]
    raise ValueError(
        f"before the first step, {cause} for data from {x.min():.4g} to {x.max():.4g}. "  # type: ignore[attr-defined]
        f"Rescale the data, for example to mean 0 and standard deviation 1, or bound the scales that the networks "
        f"return."
    ) from error
