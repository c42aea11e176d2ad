"""The KL divergence of the guide from the prior for each datum and latent dimension, and collapsed dimensions."""

from typing import TYPE_CHECKING, Any, Unpack

from torch import Tensor

from pyrovae._waist.divergences import divergence, is_mean_field
from pyrovae._waist.sites import Program
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.latent_sites import by_datum, latents_of, pairs, runs
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.pairs import takes_vae
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.report import report
from pyrovae.evaluation.sampler import check_draws

if TYPE_CHECKING:
    import xarray as xr


@takes_vae
def kl_per_dimension(
    model: Program,
    guide: Program,
    x: Any,
    num_samples: int = 100,
    **options: Unpack[Options],
) -> "xr.Dataset":
    r"""Compute :math:`\mathrm{KL}(q(z_j \mid x) \,\|\, p(z_j))` of each datum and latent dimension.

    The divergence of a site is computed in closed form under two conditions. First, torch has the closed form for this
    posterior and prior, as for two normals. Second, the prior depends only on sites that the guide draws before this
    site. Otherwise, the divergence is estimated by the mean of :math:`\log q - \log p` over draws. If the dimensions
    of a site are dependent in the posterior or in the prior, the site counts as one dimension. The sum over all
    dimensions is the KL term of the ELBO.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of tensors that share the first dimension.
        num_samples: Draws per datum. If the distributions of a site depend on the draws of other latent sites, the
            closed form is averaged over these draws as well.
        **options: Keyword arguments of :class:`Options`.

    Returns:
        Dataset of KL divergences in nats, with one variable for each latent site. The variable is named after the site
        and has the dimensions ``datum`` and ``<site>_unit``.

    Raises:
        TypeError: For the reasons listed at :func:`evaluate`.
        ValueError: For the reasons listed at :func:`evaluate`, if a discrete site is enumerated, or if a latent site is
            auxiliary.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), appendix B.

    Example:
        >>> import torch, pyrovae as pv
        >>> def network(x):  # q(z | x) = N((x_0, 0), I)
        ...     return torch.cat([x[..., :1], torch.zeros(*x.shape[:-1], 3)], dim=-1)
        >>> posterior = pv.posteriors.DiagonalNormal(network)
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Normal(pv.networks.mlp(2, 4)), posterior)
        >>> divergences = pv.evaluation.kl_per_dimension(vae.model, vae.guide, torch.tensor([[0.0, 1.0, 2.0, 3.0]]) + 2)
        >>> divergences.z.values.round(3).tolist()  # mean^2 / 2
        [[2.0, 0.0]]
    """
    problem = Problem(model, guide, x, **options)
    check_draws(num_samples)
    dims: dict[str, tuple[str, ...]] = {}

    def columns(batch: Batch) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for weights in runs(problem, batch, num_samples):
            of_guide, of_model = latents_of(weights.guide_sites), latents_of(weights.model_sites)
            for name, q, p in pairs(of_guide, of_model):
                exact = is_mean_field(name, list(of_model), list(of_guide))
                values = by_datum(problem, q, divergence(q, p, exact=exact)).sum(0)
                sums[name] = sums.get(name, 0) + values
                dims[name] = ("datum", f"{name}_unit")
        return {name: values[: batch.kept] / num_samples for name, values in sums.items()}

    return report(
        problem, columns, estimator="KL divergence per dimension", dims=dims, units="nats", num_samples=num_samples
    )


def collapsed_units(divergences: "xr.Dataset", *, epsilon: float = 0.01, delta: float = 0.01) -> "xr.Dataset":
    r"""Find collapsed latent units, whose KL divergence is close to zero for nearly all data.

    A unit is collapsed if the KL divergence of its posterior from its prior is below :math:`\epsilon` for a fraction of
    at least :math:`1 - \delta` of the data.

    Args:
        divergences: Result of :func:`kl_per_dimension`, nats.
        epsilon: KL divergence below which a unit is taken to carry no information about a datum, nats.
        delta: Largest fraction of the data about which a collapsed unit may carry information.

    Returns:
        Dataset with a boolean variable for each latent site, with dimension ``<site>_unit``. The variable is true for
        collapsed units.

    Raises:
        ValueError: If ``epsilon`` is not positive, or ``delta`` is not in [0, 1).

    Source:
        *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse* (Lucas, Tucker, Grosse and Norouzi,
        2019), definition 1.

    Example:
        >>> import xarray as xr, pyrovae as pv
        >>> divergences = xr.Dataset({"z": (("datum", "z_unit"), [[0.001, 1.2], [0.002, 0.0]])})
        >>> pv.evaluation.collapsed_units(divergences).z.values.tolist()
        [True, False]
    """
    if epsilon <= 0 or not 0 <= delta < 1:
        raise ValueError(f"epsilon must be positive and delta in [0, 1), got epsilon={epsilon} and delta={delta}")
    return (divergences < epsilon).mean("datum") >= 1 - delta
