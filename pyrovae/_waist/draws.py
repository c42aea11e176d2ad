"""What a guide draws, and programs that are run on values given to them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import pyro
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.sites import Program, Site, sample_sites, score, site_plates
from pyrovae._waist.summation import add_up


class Given(Messenger):
    """Gives sites their values; a subsampling plate without one takes in every run what it chose in the first."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = dict(values)

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.values[msg["name"]] = msg["value"]


def with_draws(program: Program, num_samples: int, nesting: int) -> Program:
    """A program that makes so many draws at once, along the dimension to the left of its own plates."""
    return pyro.plate("_pyrovae_draws", num_samples, dim=-nesting - 1)(program)


def draw_latents(
    guide: Program,
    args: Sequence[Any],
    num_samples: int = 1,
    *,
    kwargs: Mapping[str, Any] | None = None,
    nesting: int | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> dict[str, Site]:
    """Runs the guide alone and returns its latent sites by name, subsampling plates among them.

    Their values, given to :func:`pyrovae._waist.weights.importance_weights`, are the draws that it would have made
    itself. Arguments as there; without a nesting there is one draw.
    """
    guide = Given(values or {})(guide)
    if nesting is not None:
        guide = with_draws(guide, num_samples, nesting)
    nodes = poutine.trace(guide).get_trace(*args, **(kwargs or {})).nodes
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]}


class Draws(NamedTuple):
    """What a guide has drawn, for a model to score, all or some of it.

    Attributes:
        values: Draws by latent site, each with the dimension of draws to the left of all plates.
        log_density: Of the guide, shape ``(num_samples, N)``, nats.
        chosen: The data that subsampling plates took, by plate.
        event_dims: Number of event dimensions of each site.
    """

    values: dict[str, Tensor]
    log_density: Tensor
    chosen: dict[str, Tensor]
    event_dims: dict[str, int]

    def part(self, start: int, stop: int, nesting: int) -> dict[str, Tensor]:
        """The draws from one to another, which have a dimension for draws at ``-nesting - 1``."""
        dims = {name: -nesting - 1 - self.event_dims[name] for name in self.values}
        return {name: value.narrow(dims[name], start, stop - start) for name, value in self.values.items()}


def draw(
    guide: Program,
    args: Sequence[Any],
    num_samples: int,
    *,
    nesting: int,
    plate: CondIndepStackFrame,
    values: Mapping[str, Tensor] | None = None,
) -> Draws:
    """Runs the guide once and returns its draws with their log-density.

    With :func:`log_joint` it takes :func:`pyrovae._waist.weights.importance_weights` apart, for programs that have
    passed its checks and enumerate nothing: the guide encodes the data once, however many runs of the model score
    its draws.
    """
    given = Given(values or {})
    sites = sample_sites(poutine.trace(with_draws(given(guide), num_samples, nesting)).get_trace(*args))
    log_density = _log_density(sites, plate, nesting)
    latents = [site for site in sites if not site["is_observed"]]
    return Draws(
        values={site["name"]: site["value"] for site in latents},
        log_density=log_density.expand(num_samples, plate.size),
        chosen=given.values,
        event_dims={site["name"]: site["fn"].event_dim for site in latents},
    )


def log_joint(
    model: Program,
    args: Sequence[Any],
    values: Mapping[str, Tensor],
    num_samples: int,
    *,
    nesting: int,
    plate: CondIndepStackFrame,
) -> Tensor:
    """Runs the model on values of its latent sites and returns log p(x, z), shape ``(num_samples, N)``, nats."""
    sites = sample_sites(poutine.trace(with_draws(Given(values)(model), num_samples, nesting)).get_trace(*args))
    return _log_density(sites, plate, nesting).expand(num_samples, plate.size)


def _log_density(sites: list[Site], plate: CondIndepStackFrame, nesting: int) -> Tensor:
    """Unscaled log-probability of the sites inside a plate, shape ``(num_samples or 1, N or 1)``."""
    inside = [site for site in sites if plate.name in {frame.name for frame in site_plates(site)}]
    terms = [(site, scale_and_mask(score(site), 1.0, site["mask"])) for site in inside]
    return add_up(terms, -nesting - 1, cast(int, plate.dim))
