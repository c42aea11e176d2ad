r"""The posterior of some data as a density on real vectors: what HMC moves in and local approximations are fitted to.

All latent sites of a datum are laid side by side in one vector u. A site with a constrained value, z = f(u), adds
:math:`\log |\det \partial f / \partial u|` to log p(x, z) and to log q(z | x) alike, and leaves log-weights alone.
"""

import math
from typing import Any, cast

import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyrovae.evaluation.pieces import Piece, Pieces
from pyrovae.sites import score
from pyrovae.summation import add_up
from pyrovae.weights import draw_latents, importance_weights


class Target:
    """log p(x, z) and log q(z | x) of the data of a piece, in the real vectors u; to be used in isolation.

    Attributes:
        size: Number of data in the piece, N.
        dim: Length of u, D.

    Raises:
        ValueError: If a latent site is discrete or auxiliary, or the program sums one out.
    """

    def __init__(self, pieces: Pieces, piece: Piece) -> None:
        self.pieces, self.subsample, self.args = pieces, piece.subsample or {}, pieces.arguments(piece)
        sites = draw_latents(pieces.guide, self.args, nesting=pieces.nesting, values=self.subsample)
        self._sites = {name: site for name, site in sites.items() if not site_is_subsample(site)}
        for name, site in self._sites.items():
            _check_continuous(name, site)
        probe = self._weights({name: site["value"] for name, site in self._sites.items()}, 1)
        if probe.densities is None:
            raise ValueError(
                "the program sums out a discrete latent site, so log p(x, z) and log q(z | x) are not known apart; "
                "use pyrovae.evaluation.evaluate"
            )
        self._data_dim = pieces.data_dim
        self.size = probe.plate.size
        self._bijections = {name: biject_to(site["fn"].support) for name, site in self._sites.items()}
        real = {name: self._bijections[name].inv(site["value"]) for name, site in self._sites.items()}
        self._shapes = {name: value.movedim(self._data_dim, 1).shape[2:] for name, value in real.items()}
        self.dim = sum(map(math.prod, self._shapes.values()))

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


def _check_continuous(name: str, site: Any) -> None:
    if site["fn"].support.is_discrete:
        raise ValueError(
            f"latent site {name!r} is discrete, a {type(site['fn']).__name__}, and Hamiltonian moves need continuous "
            f"latents; use pyrovae.evaluation.evaluate"
        )
    if site["infer"].get("is_auxiliary"):
        raise ValueError(
            f"latent site {name!r} is auxiliary, in the guide but not in the model, so the posterior has no such "
            f"dimension; use pyrovae.evaluation.evaluate"
        )
