"""Runs of the guide, which make draws, and runs of the model at these draws."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.changes_in_place import ChangesInPlace
from pyrovae._waist.errors import explained_divergence
from pyrovae._waist.plates import DRAWS, nesting_of
from pyrovae._waist.sites import CONDITIONED, Program, Site, is_enumerated, sample_sites
from pyrovae._waist.support import moved_inside


class Given(Messenger):
    """Pyro handler that sets sites to given values.

    If no value is given for a subsampling plate, the plate chooses its data in the first run with this handler. Later
    runs keep this choice.

    If a given value lies outside the support of its site, the program gets a valid value instead. The option
    ``_pyrovae_inside`` in the site's ``infer`` is a mask that is false where a given value was replaced. The given
    value has probability zero there. The option ``_pyrovae_conditioned`` marks observed sites whose value comes from a
    handler such as ``pyro.condition``.

    Args:
        values: Values of sites, by name.
        infer: ``infer`` options of enumerated sites, by name. They contain the dimensions of the enumerated values.
    """

    def __init__(self, values: Mapping[str, Tensor], infer: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.values, self.infer = dict(values), infer or {}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], inside = moved_inside(msg["fn"], self.values[msg["name"]])
            if msg["name"] in self.infer:
                msg["infer"], msg["done"] = self.infer[msg["name"]], True
            if inside is not None:
                msg["infer"] = {**msg["infer"], "_pyrovae_inside": inside}
        elif msg["is_observed"] and any(_gives(handler, msg["name"]) for handler in _PYRO_STACK):
            msg["infer"] = {**msg["infer"], CONDITIONED: True}

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.values[msg["name"]] = msg["value"]


def _gives(handler: Any, name: str) -> bool:
    """Return whether a handler, such as ``pyro.condition``, has a value for a site."""
    values = getattr(handler, "data", None)
    return isinstance(values, Mapping | poutine.Trace) and name in values


def with_draws(program: Program, num_draws: int, nesting: int | None) -> Program:
    """Return a program that makes many draws in one run, along the dimension to the left of the program's own plates.

    Args:
        program: Pyro program.
        num_draws: Number of draws.
        nesting: Nesting depth of the program's own plates. ``None`` leaves the program unchanged, with one draw.
    """
    return program if nesting is None else pyro.plate(DRAWS, num_draws, dim=-nesting - 1)(program)


@dataclass(frozen=True)
class Draws:
    """The draws of one run of a guide, and their dimensions.

    Attributes:
        sites: All sample sites of the run.
        chosen: Indices that subsampling plates chose, by name of the plate.
        num_draws: Number of draws.
        nesting: Nesting depth of the program's own plates. The draws lie along the next dimension to the left. ``None``
            if there is a single draw without a dimension of draws.
        depth: Number of dimensions of the plates and the draws together. Dimensions of enumerated values lie to the
            left of these dimensions. ``None`` if the guide enumerates no site.
        infer: ``infer`` options of the sites, by name; empty if the guide enumerates no site.
    """

    sites: list[Site]
    chosen: dict[str, Tensor]
    num_draws: int
    nesting: int | None
    depth: int | None = None
    infer: dict[str, Any] = field(default_factory=dict)

    @property
    def draws_dim(self) -> int | None:
        """Dimension of the draws in a site's batch shape, from the right; None if the sites have no such dimension."""
        return None if self.nesting is None else -self.nesting - 1

    @property
    def latents(self) -> dict[str, Site]:
        """Dictionary of the latent sites, by name."""
        return {site["name"]: site for site in self.sites if not site["is_observed"]}

    @property
    def values(self) -> dict[str, Tensor]:
        """Values of the latent sites and indices of the subsampling plates, by name."""
        return self.chosen | {name: site["value"] for name, site in self.latents.items()}

    def part(self, start: int, stop: int) -> dict[str, Tensor]:
        """Return a copy of the dictionary ``values``, restricted to draws ``start`` to ``stop - 1``."""
        assert self.draws_dim is not None
        values = dict(self.chosen)
        for name, site in self.latents.items():
            dim, value = self.draws_dim - site["fn"].event_dim, site["value"]
            shared = value.ndim < -dim or value.shape[dim] == 1  # all draws have the same value
            values[name] = value if shared else value.narrow(dim, start, stop - start)
        return values


def run_guide(
    guide: Program,
    args: Sequence[Any],
    num_draws: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    nesting: int | None = None,
    values: Mapping[str, Tensor] | None = None,
    depth: int | None = None,
) -> Draws:
    """Run a guide and return its draws.

    Args:
        guide: Pyro program of q(z | x).
        args: Arguments of the guide.
        num_draws: Number of draws per datum; must be 1 if ``nesting`` is ``None``.
        kwargs: Keyword arguments of the guide.
        nesting: Nesting depth of the program's own plates, for a run with a dimension of draws. The draws lie along the
            dimension to the left of these plates. With ``None``, the run has no dimension of draws.
        values: Values of latent sites and indices of subsampling plates, by name. The value of a latent site replaces
            its draw. If a value has dimensions of enumerated sites, they lie to the left of the dimensions of plates
            and draws.
        depth: Nesting depth of the program's own plates, for a run without a dimension of draws; ignored if ``nesting``
            is given. With ``None``, a guide that enumerates sites runs twice, because its first run finds the depth.
    """
    given = Given(values or {})
    program = with_draws(given(guide), num_draws, nesting)
    depth = depth if nesting is None else nesting + 1

    def run(program: Program) -> list[Site]:
        with ChangesInPlace():
            return sample_sites(poutine.trace(program).get_trace(*args, **(kwargs or {})))

    with explained_divergence():
        sites = run(program if depth is None else poutine.enum(program, first_available_dim=-depth - 1))
        if not any(map(is_enumerated, sites)):
            depth = None
        elif depth is None:
            depth = nesting_of(sites)
            sites = run(poutine.enum(program, first_available_dim=-depth - 1))
    # The options of a site contain its enumerated dimensions. Pyro's replay passes them to the model in the same way.
    infer = {site["name"]: site["infer"] for site in sites} if depth is not None else {}
    chosen = {name: value for name, value in given.values.items() if name not in {site["name"] for site in sites}}
    return Draws(sites, chosen, 1 if nesting is None else num_draws, nesting, depth, infer)


def run_model(
    model: Program,
    args: Sequence[Any],
    values: Mapping[str, Tensor],
    num_draws: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    nesting: int | None = None,
    drawn_with: Draws | None = None,
) -> list[Site]:
    """Run a model at given values of its latent sites, and return its sample sites.

    Sites that request enumeration are enumerated. Their dimensions lie to the left of all plates, and to the left of
    the dimensions that the guide enumerates.

    Args:
        model: Pyro program of p(x, z).
        args: Arguments of the model.
        values: Values of latent sites and indices of subsampling plates, by name.
        num_draws: Number of draws in the values.
        kwargs: Keyword arguments of the model.
        nesting: Nesting depth of the program's own plates; ``None`` for values without a dimension of draws.
        drawn_with: Result of the call of :func:`run_guide` that drew the values; needed if the guide enumerated sites.
    """
    given = Given(values, drawn_with.infer if drawn_with else None)

    def run(program: Program) -> list[Site]:
        with ChangesInPlace():
            return sample_sites(poutine.trace(program).get_trace(*args, **(kwargs or {})))

    with explained_divergence():
        if drawn_with is not None and drawn_with.depth is not None:
            # Pyro's enumeration is the innermost handler, as in TraceEnum_ELBO, and records on which dimensions a site
            # depends.
            return run(with_draws(given(poutine.enum(model)), num_draws, nesting))
        program = with_draws(given(model), num_draws, nesting)
        if nesting is not None:
            return run(poutine.enum(program, first_available_dim=-nesting - 2))
        sites = run(program)
        if any(map(is_enumerated, sites)):
            sites = run(poutine.enum(program, first_available_dim=-nesting_of(sites) - 1))
    return sites


def run_until(
    model: Program,
    args: Sequence[Any],
    values: Mapping[str, Tensor],
    names: Collection[str],
    num_draws: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    nesting: int | None = None,
) -> dict[str, Site]:
    """Run a model until it has sampled some of its sites, and return these sites by name.

    The rest of the model, such as the network of the likelihood, does not run. Arguments other than ``names``, the
    names of the sites, are those of :func:`run_model`.
    """
    until = _Until(names)
    try:
        with explained_divergence(), until:
            with_draws(Given(values)(model), num_draws, nesting)(*args, **(kwargs or {}))
    except _AllSampled:
        pass
    return until.sites


class _AllSampled(BaseException):
    """Signal that a run has sampled all requested sites; a program that catches exceptions does not catch it."""


class _Until(Messenger):
    """Pyro handler that records the given sites, and ends the run after the last of them."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names, self.sites = frozenset(names), dict[str, Site]()

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.sites[msg["name"]] = msg
            if len(self.sites) == len(self.names):
                raise _AllSampled
