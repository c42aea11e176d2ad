r"""The map between the latent sites of a program and real vectors.

All latent sites of a datum are concatenated into one vector u. A site with a constrained support, z = f(u), adds
:math:`\log |\det \partial f / \partial u|` to both log p(x, z) and log q(z | x), so log-weights do not change.

An autoguide such as AutoNormal draws u at auxiliary sites. It then gives each latent site a ``Delta`` distribution
at z = f(u). To compute the density of such a guide at a given u, the auxiliary sites are fixed at u. The guide then
computes the values z of the latent sites from u.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyrovae._refinement.scoring import is_autoregressive, scores_slowly
from pyrovae._waist.scoring import entry_mask
from pyrovae._waist.sites import Site, is_enumerated, is_point
from pyrovae._waist.support import (
    common_support,
    is_periodic,
    is_positive,
    is_real,
    is_same_support,
    support_of,
    without_mixtures,
)
from pyrovae._waist.weights import Weights
from pyrovae.distributions import support_of_flow
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.unconstrained.conditional_priors import scaled_sites
from pyrovae.isolation import seeded

COPIES = 8  # tensors with the size of u that a mixture of normal densities holds at a time
FLOAT = 4  # bytes of a float32


class Space:
    """The map between the latent sites of a program and real vectors u; it is the same for all batches.

    Args:
        problem: Model, guide and data, inside the context ``with problem:``.
        with_guide: True if the guide's density is evaluated; false if the guide is only used to draw.

    Attributes:
        sites: Latent sites of model and guide, by name.
        noise: Auxiliary sites of the guide, by name. Their values are real coordinates u, from which the guide computes
            the values of latent sites.
        dim: Length of a vector u, D.
        scaled: Names of the latent sites whose prior has a scale that depends on other latents.

    Raises:
        ValueError: If the guide has no latent sites, enumerates a site, or has a density that changes from run to run;
            if a latent site is discrete, masked or an angle, or its support has no map to real vectors; if the support
            depends on the datum or on other latents, or differs between guide and model; or if an auxiliary site does
            not hold the real coordinates of a latent site.
    """

    def __init__(self, problem: Problem, *, with_guide: bool = True) -> None:
        self.problem, self.with_guide = problem, with_guide
        if problem.probe.enumerates:
            raise ValueError(
                "the guide enumerates a discrete latent site, so log p(x, z) and log q(z | x) are not known "
                "separately. Leave the site to the model, which sums it out, or use pyrovae.evaluation.evaluate."
            )
        problem.check_repeats()
        batch = problem.few()
        first, again = (problem.run(batch, amortized=True) for _ in range(2))
        of_guide, of_model = _latents(first.guide_sites), _latents(first.model_sites)
        if not of_guide:
            raise ValueError(
                "the guide has no latent sites, so a chain has nothing to move. Use pyrovae.evaluation.evaluate, whose "
                "estimate is exact if the model sums out all of its latents."
            )
        self.noise = {name: site for name, site in of_guide.items() if name not in of_model}
        self.sites = {name: site for name, site in of_guide.items() if name in of_model}
        self.points = [name for name, site in self.sites.items() if self.noise and is_point(site["fn"])]
        for name, site in self.sites.items():
            _check_continuous(name, of_model[name] if name in self.points else site)
        for name, site in self.noise.items():
            _check_unmasked(name, site)
        self.model_sites = {name: of_model[name] for name in self.sites}
        self.supports = {name: self._fixed_support(name, of_model[name]["fn"]) for name in self.sites}
        self._check_supports(again)
        self.bijections = {name: biject_to(support) for name, support in self.supports.items()}
        drawn = problem.draw(batch, 2, amortized=True)
        real = {name: self.bijections[name].inv(drawn.values[name]) for name in self.sites}
        for name, site in self.sites.items():
            if name not in self.points:
                self._check_guide_support(name, site, of_model[name], real[name])
        self.shapes = {name: self._by_datum(value).shape[2:] for name, value in real.items()}
        self.noise_shapes = {name: self._by_datum(drawn.values[name]).shape[2:] for name in self.noise}
        self._check_noise(drawn.values, real)
        self.scaled = scaled_sites(first.model_sites, again.model_sites)
        self._samples_fast = not any(map(is_enumerated, first.model_sites)) and not any(
            is_autoregressive(site["fn"]) for site in of_model.values()
        )
        self.dim = sum(map(math.prod, self.shapes.values()))
        self.graphs: dict[tuple[int, ...], Callable[..., Sequence[Tensor]] | None] = {}

    @property
    def is_flat(self) -> bool:
        """True if compiled graphs compute the densities of any number of data; see ``FlatTarget``."""
        problem = self.problem
        return bool(problem.options["compile"]) and problem.vectorize and problem.probe.cuttable

    @property
    def affordable(self) -> int:
        """Number of vectors u whose densities fit into memory if they are computed together.

        A graph runs the model on a part of the vectors at a time, so only the vectors and the guide need memory.
        """
        problem = self.problem
        if not self.is_flat:
            return problem.affordable
        per_vector = problem.probe.memory.guide_per_draw + COPIES * FLOAT * self.dim
        return max(problem.affordable, int(problem.memory / per_vector))

    @property
    def width(self) -> int:
        """Number of data in a batch, for estimators that fit a density to the posterior of each datum."""
        return max(8, min(256, self.affordable // max(1, self.dim // 4)))

    @property
    def has_edges(self) -> bool:
        """True if a latent site has a support other than all real numbers."""
        return not all(is_real(site["fn"]) for site in self.model_sites.values())

    @property
    def scores_guide(self) -> bool:
        """True if the density of the guide at given values is cheap to compute."""
        return not any(scores_slowly(site["fn"]) for site in self.drawn_sites)

    @cached_property
    def has_prior(self) -> bool:
        """True if the prior can be drawn, and its draws and densities are cheap to compute.

        The property is false if the model enumerates sites, if the prior of a site is an autoregressive flow, or if the
        prior is improper.
        """
        if not self._samples_fast:
            return False
        batch, names = self.problem.few(), tuple(self.sites)
        try:
            with seeded(self.problem.seed), torch.no_grad():  # other random numbers do not depend on this test
                values, log_prior = self.problem.route.draw_prior(batch, 2, names)
                u = self.flatten(values)
        except Exception:  # a program may raise any error at values that the guide never draws
            return False
        return u.shape == (2, batch.size, self.dim) and bool(log_prior.isfinite().all())

    @property
    def drawn_sites(self) -> list[Site]:
        """The sites at which the guide draws random values, including auxiliary sites."""
        return [site for name, site in self.sites.items() if name not in self.points] + list(self.noise.values())

    def check_batch(self, batch: Batch) -> None:
        """Check that the latent sites of a batch are not masked and have the supports of the first batch.

        Raises:
            ValueError: If a support depends on the datum or on other latents, or a site is masked.
        """
        weights = self.problem.run(batch, amortized=True)
        self._check_supports(weights)
        for name, site in _latents(weights.model_sites).items():
            _check_unmasked(name, site)

    def _fixed_support(self, name: str, distribution: Any) -> Any:
        support = common_support(_support(distribution))
        if support is None:
            raise ValueError(self._varies(name))
        return support

    def _check_supports(self, weights: Weights) -> None:
        for name, site in _latents(weights.model_sites).items():
            if name in self.supports and not is_same_support(
                self._fixed_support(name, site["fn"]), self.supports[name]
            ):
                raise ValueError(self._varies(name))

    def _varies(self, name: str) -> str:
        return (
            f"the support of latent site {name!r} depends on other latents or on the datum, so its values have no "
            f"fixed map to real vectors. Give the site a fixed support, or use pyrovae.evaluation.evaluate."
        )

    def _check_noise(self, values: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> None:
        """Check that auxiliary sites hold the real coordinates of the latent sites that are computed from them.

        The coordinates must be in the order of the latent sites. Latent sites that the guide samples are not checked.
        """
        if not self.noise:
            return
        noise = [self._flat(values[name]) for name in self.noise]
        points = [self._flat(real[name]) for name in self.points]
        drawn, computed = (torch.cat(parts, -1) if parts else torch.empty(0) for parts in (noise, points))
        is_map = drawn.shape == computed.shape and torch.allclose(drawn, computed, rtol=1e-3, atol=1e-3)
        if not (is_map and all(is_real(site["fn"]) for site in self.noise.values())):
            raise ValueError(
                f"latent site {next(iter(self.noise))!r} is auxiliary: it is in the guide but not in the model. An "
                f"auxiliary site is accepted here only if its values are the unconstrained coordinates of latent sites "
                f"of the model. For this program, use pyrovae.evaluation.evaluate."
            )

    def _check_guide_support(self, name: str, of_guide: Site, of_model: Site, real: Tensor) -> None:
        """Raise ValueError if a site's support in the guide does not fit its support in the model.

        If the guide is only used to draw, its support must lie inside the model's. If its density is evaluated too,
        the two supports must be equal.
        """
        other = without_mixtures(support_of(of_guide["fn"]) or support_of_flow(of_guide["fn"]))
        wide = torch.linspace(-8, 8, 9).to(real).reshape((9,) + (1,) * real.ndim).expand(9, *real.shape)
        support = self.supports[name]
        if real.isfinite().all() and (
            other is None or (_holds(support, other, wide) and (not self.with_guide or _holds(other, support, wide)))
        ):
            return
        raise ValueError(
            f"latent site {name!r} has another support in the guide ({type(of_guide['fn']).__name__}) than in the "
            f"model ({type(of_model['fn']).__name__}), so guide and posterior have no common map to real vectors. Give "
            f"both the same support, or use pyrovae.evaluation.evaluate."
        )

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Map values of the latents to real vectors u, shape ``(num_draws, N, D)``."""
        return self.join({name: self.bijections[name].inv(values[name]) for name in self.sites})

    def join(self, real: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the real coordinates of all sites to vectors u, shape ``(num_draws, N, D)``."""
        return torch.cat([self._flat(real[name]) for name in self.sites], dim=-1)

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """Split vectors u, shape ``(num_draws, N, D)``, into the real coordinates of each site, by name."""
        return self._split(u, self.shapes)

    def values(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the values of the latents at u, by name, and the log-determinant of the map from u to these values.

        The log-determinant has shape ``(num_draws, N)``.
        """
        values, log_det, dim = {}, u.new_zeros(u.shape[:2]), self.problem.data_dim
        for name, real in self.split(u).items():
            values[name] = self._representable(name, self.bijections[name](real))
            own = self.bijections[name].log_abs_det_jacobian(real, values[name]).movedim(dim, 1)
            log_det = log_det + own.reshape(*u.shape[:2], -1).sum(-1)
        return values, log_det

    def _representable(self, name: str, value: Tensor) -> Tensor:
        """Replace positive values that have underflowed or overflowed, where the prior's density may be infinite."""
        if not is_positive(self.supports[name]):
            return value
        limits = torch.finfo(value.dtype)
        return value.clamp(limits.tiny, limits.max)

    def given_to_guide(self, u: Tensor, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the values of the guide's sites at real vectors u, by name, for a run of the guide.

        Auxiliary sites are included. Latent sites that the guide computes from auxiliary sites are left out.
        """
        if not self.noise:
            return values
        real = self.split(u)
        coordinates = torch.cat([self._flat(real[name]) for name in self.points], -1)
        drawn = {name: value for name, value in values.items() if name not in self.points}
        return drawn | self._split(coordinates, self.noise_shapes)

    def by_datum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values of the latents with the data along the second dimension, shape ``(num_draws, N, *rest)``."""
        return {name: self._by_datum(values[name]) for name in self.sites}

    def _by_datum(self, value: Tensor) -> Tensor:
        return value.movedim(self.problem.data_dim, 1)

    def _flat(self, value: Tensor) -> Tensor:
        by_datum = self._by_datum(value)
        return by_datum.reshape(*by_datum.shape[:2], -1)

    def _split(self, u: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Split vectors u, shape ``(num_draws, N, D)``, into the real coordinates of each site, by name."""
        parts = u.split([math.prod(shape) for shape in shapes.values()], dim=-1)
        dim = self.problem.data_dim
        return {
            name: part.reshape(*u.shape[:2], *shape).movedim(1, dim)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }


def _latents(sites: list[Site]) -> dict[str, Site]:
    return {site["name"]: site for site in sites if not site["is_observed"]}


def _check_continuous(name: str, site: Site) -> None:
    """Raise ValueError if a latent site is discrete, an angle or masked, or has a ``Delta`` distribution."""
    instead = "use pyrovae.evaluation.evaluate"
    if is_point(site["fn"]):
        raise ValueError(
            f"latent site {name!r} has a Delta distribution in the guide, as in some of Pyro's autoguides, so the "
            f"guide has no density. Write a guide that draws the site at random, or {instead}."
        )
    if getattr(support_of(site["fn"]), "is_discrete", False):
        raise ValueError(
            f"latent site {name!r} is discrete, a {type(site['fn']).__name__}, but Hamiltonian moves need continuous "
            f"latents. For this program, {instead}."
        )
    if is_periodic(site["fn"]):
        raise ValueError(
            f"latent site {name!r} has a VonMises distribution, whose values are angles. The distribution is "
            f"periodic, although its support is declared as real. Represent the angle by a point on the circle, or "
            f"{instead}."
        )
    _check_unmasked(name, site)


def _check_unmasked(name: str, site: Site) -> None:
    """Raise ValueError if a latent site is masked."""
    if entry_mask(site) is not True:
        raise ValueError(
            f"latent site {name!r} is masked, so its posterior has no density where the mask is false. Remove these "
            f"data and the mask, or use pyrovae.evaluation.evaluate."
        )


def _holds(first: Any, second: Any, real: Tensor) -> bool:
    """Map the coordinates ``real`` into the support ``second``; return whether ``first`` contains all these points."""
    return bool(first.check(biject_to(second)(real)).all())


def _support(distribution: Any) -> Any:
    support = support_of(distribution) or support_of_flow(distribution)
    if support is None:
        raise ValueError(
            f"{type(distribution).__name__} has no property support, so its values cannot be mapped to real vectors. "
            f"Add the property, for example with the value torch.distributions.constraints.real_vector."
        )
    support = without_mixtures(support)
    try:
        biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"the support of {type(distribution).__name__}, {support}, is a surface without a map to real vectors. Use "
            f"pyrovae.evaluation.evaluate."
        ) from error
    return support
