r"""Base classes of the objectives: they have the interface of :class:`pyro.infer.ELBO` and compute log-weights.

.. math:: \text{loss} = -\sum_n s_n \, B\big(\log w_n^{(1)}, \dots, \log w_n^{(K)}\big)

for a bound B of each datum. If all sites have the same scale, :math:`s_n` is this scale; otherwise :math:`s_n` is the
scale of the data plate. The factor :math:`s_n` multiplies the bound, not the log-weights.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypedDict, Unpack

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from pyrovae._waist.agreement import check_auxiliary
from pyrovae._waist.densities import Densities
from pyrovae._waist.independence import (
    BatchNormInputs,
    depends_on_other_data,
    difference_by_data,
    largest_difference,
    needs_one_draw_a_run,
    with_other_data,
    with_second_draw,
)
from pyrovae._waist.noise import (
    NoiseOutsideSites,
    depends_on_noise,
    differs_again,
    draws_outside_sites,
    keeps_a_state,
)
from pyrovae._waist.outside import OutsidePlateError, check_given, outside_terms
from pyrovae._waist.scoring import score
from pyrovae._waist.sites import is_enumerated
from pyrovae._waist.weights import Weights, importance_weights
from pyrovae.arguments import check_whole
from pyrovae.isolation import isolated

Program = Callable[..., Any]


class Options(TypedDict, total=False):
    """Options that all objectives share.

    Attributes:
        max_plate_nesting: Nesting depth of the program's plates; by default a run of the program determines it.
        vectorize_particles: If true, the default, all draws are made in one run. Set it to false for programs that
            cannot be run with a dimension to the left of their plates.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        retain_graph: Passed to ``backward``, as in Pyro's objectives.
    """

    max_plate_nesting: float
    vectorize_particles: bool
    plate: str | None
    retain_graph: bool | None


class Weighing:
    """Base class of objectives. It computes log-weights, and checks the programs at the first call.

    Attributes:
        needs_paths: True if the objective's gradient is biased for draws that are not reparameterized.
        is_of_batch: True if the loss depends on the batch as a whole instead of being a sum over its data.
    """

    needs_paths = True
    is_of_batch = False
    _is_checked = False
    num_particles: int
    num_draws: int
    max_plate_nesting: float
    vectorize_particles: bool
    plate: str | None

    def _nesting(self, model: Program, guide: Program, args: Any, kwargs: Any) -> int | None:
        """Return the nesting depth of the program's plates, or None if ``vectorize_particles`` is false.

        The first call checks the program.
        """
        particles = int(self.num_particles > 1)  # Pyro counts the dimension of particles in max_plate_nesting
        if not self._is_checked:
            with isolated(model, guide, seed=0), self._explained():  # the check must not change the generator
                nesting = None if self.max_plate_nesting == math.inf else int(self.max_plate_nesting) - particles
                nesting = self._check_program(model, guide, args, kwargs, nesting)
            if self.vectorize_particles:
                self.max_plate_nesting = nesting + particles
            self._is_checked = True
        return int(self.max_plate_nesting) - particles if self.vectorize_particles else None

    def _check_program(self, model: Program, guide: Program, args: Any, kwargs: Any, nesting: int | None) -> int:
        """Check that each log-weight depends only on its datum and draw; return the nesting depth of the plates.

        The same draws are scored in the given batch, in batches with other data, and in a run with two draws per datum.

        Raises:
            ValueError: If the log-weights differ between these runs, if the model uses random numbers outside sample
                sites, or if the program cannot be run with a dimension of draws.
        """
        options: Any = {"kwargs": kwargs, "plate": self.plate, "for_loss": True}
        noise = NoiseOutsideSites()
        model = noise(model)
        with BatchNormInputs() as alone:
            one = importance_weights(model, guide, args, **options)
        noise.sources.clear()  # the first run may initialize parameters at random

        def check_repeats() -> None:
            if noise.sources and depends_on_noise(
                noise, lambda: importance_weights(model, guide, args, **options).of_model
            ):
                raise ValueError(draws_outside_sites(noise))
            if differs_again(lambda: importance_weights(model, guide, args, **options).of_model):
                raise ValueError(keeps_a_state())

        check_auxiliary(one.model_sites, one.guide_sites)
        check_given(one, lambda args: importance_weights(model, guide, args, **options), args)
        nesting = one.nesting if nesting is None else nesting
        depth = one.nesting if any(map(is_enumerated, one.guide_sites)) else None
        for mixed, values, kept in with_other_data(args, one.guide_sites, one.nesting, one.plate):
            with suppress(RuntimeError, IndexError, AssertionError):  # the program does not accept these data
                other = importance_weights(model, guide, mixed, values=one.chosen | values, depth=depth, **options)
                if difference := difference_by_data(one, other, kept):
                    check_repeats()
                    reason = depends_on_other_data(f"by {difference:.3g} nats for a datum", one)
                    raise ValueError(f"{reason}. {type(self).__name__} would not be a bound on log p(x).")
        if noise.sources:
            check_repeats()
        if not self.vectorize_particles:
            return nesting
        values = {**one.chosen, **with_second_draw(one.guide_sites, nesting, one.plate)}
        with BatchNormInputs() as together:
            try:
                two = importance_weights(model, guide, args, 2, nesting=nesting, values=values, **options)
            except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
                reason = " ".join(str(error).split())[:150]
                raise ValueError(self._advice(f"one draw has log-weights, two raise an error: {reason}")) from error
        if layer := together.differing(alone):
            raise ValueError(self._advice(f"{type(layer).__name__} takes the data for its channels"))
        if difference := largest_difference(two.log_weights[:1], one.log_weights):
            check_repeats()
            raise ValueError(self._advice(f"by {difference:.3g} nats for a datum"))
        return nesting

    def _advice(self, reason: str) -> str:
        return (
            f"{needs_one_draw_a_run(reason)}. Alternatively, run the program once for each draw, "
            f"{type(self).__name__}(..., vectorize_particles=False)."
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Context manager that turns an OutsidePlateError into a ValueError that recommends Trace_ELBO."""
        try:
            yield
        except OutsidePlateError as error:
            name = type(self).__name__
            raise ValueError(
                f"{error} {name} is a bound per datum, so it cannot count a site outside the data plate. To count the "
                f"site once for all data, train with Trace_ELBO."
            ) from error

    def _weights(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Weights:
        nesting = self._nesting(model, guide, args, kwargs)
        options: Any = {"kwargs": kwargs, "nesting": nesting, "plate": self.plate, "for_loss": True}
        with self._explained():
            weights = importance_weights(model, guide, args, self.num_draws, **options)
        name = type(self).__name__
        for site in outside_terms(weights.model_sites + weights.guide_sites, weights.plate):
            if score(site).requires_grad:  # a conditioned latent site
                raise ValueError(
                    f"site {site['name']!r} lies outside the data plate {weights.plate.name!r} and depends on "
                    f"parameters, but {name} is a bound per datum, and the site belongs to no datum. Move the site "
                    f"into the plate, or train with Trace_ELBO."
                )
        if weights.unreparameterized and self.needs_paths:
            raise ValueError(
                f"latent site {weights.unreparameterized[0]!r} has no reparameterized draws, so the gradient of {name} "
                f"would be biased. Train with Trace_ELBO or, for a discrete site, TraceEnum_ELBO."
            )
        return weights

    def _densities(self, weights: Weights) -> Densities:
        """Return the terms of the log-weights: log p(x | z), log p(z) and log q(z | x).

        Raises:
            ValueError: If enumerated sites are summed out, so that the terms are not known separately.
        """
        if weights.densities is None:
            raise ValueError(
                f"{type(self).__name__} needs the densities p(x | z), p(z) and q(z | x) separately, but a sum over the "
                f"values of an enumerated site gives only the log-weight. Train with IWAE, or with TraceEnum_ELBO."
            )
        return weights.densities


class Objective(Weighing, ELBO):
    """Base class of objectives for any pair (model, guide); subclasses implement ``differentiable_loss``.

    Args:
        num_particles: Number of draws per datum; with several groups, number of draws per datum and group.
        num_groups: Number of groups of ``num_particles`` draws for each datum.
        **options: Keyword arguments of :class:`Options`.

    Raises:
        TypeError: If an option is unknown, or ``num_particles`` or ``num_groups`` is not an integer.
        ValueError: If ``num_particles`` or ``num_groups`` is less than 1.
    """

    def __init__(self, num_particles: int = 1, num_groups: int = 1, **options: Unpack[Options]) -> None:
        name = type(self).__name__
        if unknown := set(options) - set(Options.__annotations__):
            raise TypeError(
                f"{name} takes no argument {min(unknown)!r}. The number of draws per datum is num_particles; the "
                f"shared options are {', '.join(Options.__annotations__)}"
            )
        check_whole(num_particles=num_particles, num_groups=num_groups)
        if num_particles < 1:
            raise ValueError(f"{name} needs at least one particle, got num_particles={num_particles}")
        if num_groups < 1:
            raise ValueError(f"{name} needs at least one group of particles, got num_groups={num_groups}")
        super().__init__(
            num_particles,
            max_plate_nesting=options.get("max_plate_nesting", math.inf),
            vectorize_particles=options.get("vectorize_particles", True),
            retain_graph=options.get("retain_graph"),
        )
        self.num_draws = num_particles * num_groups
        self.plate = options.get("plate")

    @abstractmethod
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the differentiable loss in nats, summed over the data, shape ``()``."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data, and add its gradient to the ``grad`` of each parameter."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


class WeightObjective(Objective):
    r"""Base class of objectives that depend only on the log-weights; a subclass defines the bound of one datum.

    The loss is :math:`-\sum_n s_n B(\log w_n^{(1)}, \dots, \log w_n^{(K)})` with the scale :math:`s_n` of the data
    plate. The gradient of the loss is computed by automatic differentiation. The base class makes the draws, checks the
    program and computes the log-weights. A subclass works with :func:`pyrovae.fit`, :class:`pyrovae.SVI` and
    ``pyro.infer.SVI``.

    Args:
        num_particles: Number of draws per datum, K; with several groups, number of draws per datum and group.
        num_groups: Number of groups of K draws for each datum.
        **options: Options that all objectives share. ``max_plate_nesting`` is the nesting depth of the program's
            plates; by default a run of the program determines it. ``vectorize_particles``, True by default, makes all
            draws in one run; set it to False for programs that cannot be run with a dimension to the left of their
            plates. ``plate`` is the name of the data plate; by default the outermost plate that all latent sites share.
            ``retain_graph`` is passed to ``backward``, as in Pyro's objectives.

    Attributes:
        is_of_batch: True if the loss depends on the batch as a whole, False by default. An objective with
            ``is_of_batch = True`` cannot be trained in several processes.
        needs_paths: True if the objective's gradient is biased without reparameterized draws, True by default.

    Raises:
        TypeError: If an option is unknown, or ``num_particles`` or ``num_groups`` is not an integer.
        ValueError: If ``num_particles`` or ``num_groups`` is less than 1. When called, if a latent site is not
            reparameterized, if a site outside the data plate has parameters, or if log-weights change when several
            draws are scored in one run.

    Example:
        >>> import math, pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> class Halfway(pv.objectives.WeightObjective):  # between the ELBO and the importance-weighted bound
        ...     def bound(self, log_weights):
        ...         iwae = log_weights.logsumexp(0) - math.log(len(log_weights))
        ...         return (log_weights.mean(0) + iwae) / 2
        >>> def model(x):  # p(x) = N(0, 2)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior, for which the bound equals log p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> round(-float(dist.Normal(0.0, 2**0.5).log_prob(x).sum()), 3)
        2.781
        >>> round(Halfway(num_particles=5).loss(model, guide, x), 3)
        2.781
    """

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """Return the bound of each datum, nats.

        Args:
            log_weights: Log-weights, shape ``(num_particles * num_groups, N)``, nats, with gradients.

        Returns:
            Bounds, shape ``(N,)``.
        """

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the bound in nats, summed over the data, shape ``()``, differentiable."""
        weights = self._weights(model, guide, args, kwargs)
        return -(weights.scale * self.bound(weights.log_weights)).sum()


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Return the logarithm of the mean weight, where the mean runs over the first dimension (the draws)."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))
