r"""The posterior of some data as a density on real vectors: what HMC moves in and local approximations are fitted to.

All latent sites of a datum are laid side by side in one vector u. A site with a constrained value, z = f(u), adds
:math:`\log |\det \partial f / \partial u|` to log p(x, z) and to log q(z | x) alike, and leaves log-weights alone.
"""

import math
from typing import Any, cast

import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from pyrovae._waist.draws import draw_latents
from pyrovae._waist.sites import Latents, Site, is_point, score
from pyrovae._waist.summation import add_up
from pyrovae._waist.weights import importance_weights
from pyrovae.distributions import support_of_flow
from pyrovae.evaluation.problem import Piece, Pieces


class Target:
    """log p(x, z) and log q(z | x) of the data of a piece, in the real vectors u; to be used in isolation.

    Attributes:
        size: Number of data in the piece, N.
        dim: Length of u, D.

    Raises:
        ValueError: If a latent site is discrete, masked, auxiliary or a point, its support depends on others, or the
            program sums one out.
    """

    def __init__(self, pieces: Pieces, piece: Piece) -> None:
        self.pieces, self.subsample, self.args = pieces, piece.subsample or {}, pieces.arguments(piece)
        self._data_dim, self.size = pieces.data_dim, pieces.plate.size
        first, again = self._run(), self._run()
        self._sites = {name: of_guide for name, (of_guide, _) in first.items()}
        self._bijections = {name: biject_to(_support(of_model["fn"])) for name, (_, of_model) in first.items()}
        for name, (_, of_model) in again.items():
            _check_support(name, self._bijections[name], biject_to(_support(of_model["fn"])), of_model["value"])
        real = {name: self._bijections[name].inv(site["value"]) for name, site in self._sites.items()}
        self._shapes = {name: value.movedim(self._data_dim, 1).shape[2:] for name, value in real.items()}
        self.dim = sum(map(math.prod, self._shapes.values()))

    def _run(self) -> dict[str, tuple[Site, Site]]:
        """The latent sites of guide and model in one run."""
        of_guide, of_model = Latents(), Latents()
        weights = importance_weights(
            of_model(self.pieces.model),
            of_guide(self.pieces.guide),
            self.args,
            nesting=self.pieces.nesting,
            plate=self.pieces.plate_name,
            values=self.subsample,
        )
        for name, (site, *_) in of_guide.runs.items():
            _check_continuous(name, site, in_model=name in of_model.runs)
        if weights.densities is None:
            raise ValueError(
                "the program sums out a discrete latent site, so log p(x, z) and log q(z | x) are not known apart; "
                "use pyrovae.evaluation.evaluate"
            )
        self.size = weights.plate.size
        return {name: (site, of_model.runs[name][0]) for name, (site, *_) in of_guide.runs.items()}

    @torch.no_grad()
    def draw(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draws u from the guide, shape ``(num_samples, N, D)``, and log q(u | x), shape ``(num_samples, N)``."""
        sites = draw_latents(
            self.pieces.guide, self.args, num_samples, nesting=self.pieces.nesting, values=self.subsample
        )
        drawn = {name: sites[name] for name in self._sites}
        dims = -self.pieces.nesting - 1, cast(int, self.pieces.plate.dim)
        log_q = add_up([(site, score(site)) for site in drawn.values()], *dims)
        u = self.flatten({name: site["value"] for name, site in drawn.items()})
        return u, log_q.expand(num_samples, self.size) + self.values(u)[1]

    def flatten(self, values: dict[str, Tensor]) -> Tensor:
        """The vectors u of some latents' values, shape ``(num_samples, N, D)``."""
        real = (self._bijections[name].inv(values[name]).movedim(self._data_dim, 1) for name in self._sites)
        return torch.cat([value.reshape(*value.shape[:2], -1) for value in real], dim=-1)

    def select(self, values: dict[str, Tensor], start: int) -> dict[str, Tensor]:
        """Picks from one draw of the latents of all data those that belong to this piece, which begins at ``start``."""
        selected = {}
        for name, site in self._sites.items():
            ndim = self.pieces.nesting + 1 + site["fn"].event_dim
            value = values[name].reshape((1,) * (ndim - values[name].ndim) + values[name].shape)
            selected[name] = value.narrow(self._data_dim, start, self.size)
        return selected

    def values(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The latents' values at u, and the log-determinant of the map, shape ``(num_samples, N)``."""
        values, log_det = {}, u.new_zeros(u.shape[:2])
        parts = u.split([math.prod(shape) for shape in self._shapes.values()], dim=-1)
        for (name, shape), part in zip(self._shapes.items(), parts, strict=True):
            real = part.reshape(*u.shape[:2], *shape).movedim(1, self._data_dim)
            values[name] = self._bijections[name](real)
            own = self._bijections[name].log_abs_det_jacobian(real, values[name]).movedim(self._data_dim, 1)
            log_det = log_det + own.reshape(*u.shape[:2], -1).sum(-1)
        return values, log_det

    def by_datum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Latents' values with the data as second dimension, shape ``(num_samples, N, *rest)``."""
        return {name: value.movedim(self._data_dim, 1) for name, value in values.items()}

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log p(x, u) and log q(u | x), shapes ``(num_samples, N)``."""
        values, log_det = self.values(u)
        densities = self._weights(values, len(u)).densities
        return densities.prior + densities.likelihood + log_det, densities.guide + log_det

    def log_joint(self, u: Tensor) -> Tensor:
        """Returns log p(x, u) alone, shape ``(num_samples, N)``; the guide is run, but not scored."""
        values, log_det = self.values(u)
        densities = self._weights(values, len(u), _PointMass(values)(self.pieces.guide)).densities
        return densities.prior + densities.likelihood + log_det

    def _weights(self, values: dict[str, Tensor], num_samples: int, guide: Any = None) -> Any:
        return importance_weights(
            self.pieces.model,
            guide or self.pieces.guide,
            self.args,
            num_samples,
            nesting=self.pieces.nesting,
            plate=self.pieces.plate_name,
            values=values | self.subsample,
        )


class _PointMass(Messenger):
    """Puts all mass of latent sites on given values, so that no density need be computed."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            value = self.values[msg["name"]]
            msg["fn"], msg["value"] = Delta(value, event_dim=msg["fn"].event_dim), value
            msg["infer"] = {**msg["infer"], "_pyrovae_given": True}  # it is no guide's claim to know the latent


def _support(distribution: Any) -> Any:
    """The support of a distribution; of a mixture, for which torch has no map to the real line, that of its members."""
    support = support_of_flow(distribution) or distribution.support
    while isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def _check_continuous(name: str, site: Site, *, in_model: bool) -> None:
    """Refuses a latent that has no posterior density to move in."""
    instead = "use pyrovae.evaluation.evaluate"
    if is_point(site["fn"]):
        raise ValueError(
            f"latent site {name!r} is a point in the guide, as in Pyro's autoguides, so the guide has no density; "
            f"write a guide that samples it, or {instead}"
        )
    if _support(site["fn"]).is_discrete:
        raise ValueError(
            f"latent site {name!r} is discrete, a {type(site['fn']).__name__}, and Hamiltonian moves need continuous "
            f"latents; {instead}"
        )
    if not in_model:
        raise ValueError(
            f"latent site {name!r} is auxiliary, in the guide but not in the model, so the posterior has no such "
            f"dimension; {instead}"
        )
    if site["mask"] is not None:
        raise ValueError(
            f"latent site {name!r} is masked, so its posterior has no density where the mask is false; leave out these "
            f"data and the mask, or {instead}"
        )


def _check_support(name: str, first: Any, again: Any, value: Tensor) -> None:
    """Refuses a latent whose support is another one at another draw of the others."""
    if not torch.allclose(first.inv(value), again.inv(value), equal_nan=True):
        raise ValueError(
            f"the support of latent site {name!r} depends on other latents, which Hamiltonian moves cannot follow; "
            f"rescale it to a support of its own in the model, or use pyrovae.evaluation.evaluate"
        )
