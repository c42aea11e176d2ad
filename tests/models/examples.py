"""Small models of binary data: conditional, semi-supervised, Bayesian, and hierarchical."""

import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv

CLASSES = 3
mlp, Joint = pv.networks.mlp, pv.networks.Joint


def labels(n: int, known: int | None = None) -> Tensor:
    """Return one-hot labels. Those after the first ``known`` labels are unknown."""
    y = torch.eye(CLASSES)[torch.arange(n) % CLASSES]
    y[n if known is None else known :] = 0
    return y


def conditional_vae() -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(Joint(mlp(2 + CLASSES, 8, 6), event_dims=(1, 1))),
        pv.posteriors.DiagonalNormal(Joint(mlp(6 + CLASSES, 8, 4), event_dims=(1, 1))),
    )


def m2(**options: float) -> pv.SemiSupervisedVAE:
    """Return the model M2 of Kingma et al. (2014)."""
    return pv.SemiSupervisedVAE(
        pv.priors.StandardNormal(2),
        dist.OneHotCategorical(torch.tensor([0.5, 0.3, 0.2])),
        pv.likelihoods.Bernoulli(Joint(mlp(2 + CLASSES, 8, 6), event_dims=(1, 1))),
        pv.posteriors.DiagonalNormal(Joint(mlp(6 + CLASSES, 8, 4), event_dims=(1, 1))),
        pv.posteriors.OneHotCategorical(mlp(6, CLASSES)),
        **options,
    )


def bayesian_vae(data_size: int = 12) -> pv.BayesianVAE:
    network = pv.bayesian.random_weights(pv.networks.mlp(2, 8, 6))
    return pv.BayesianVAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(network),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(6, 8, 4)),
        data_size=data_size,
    )


def hierarchical() -> pv.HierarchicalVAE:
    normal = pv.posteriors.DiagonalNormal
    return pv.HierarchicalVAE(
        priors=(normal(mlp(2, 2 * 3)), pv.priors.StandardNormal(2)),
        likelihood=pv.likelihoods.Bernoulli(mlp(3, (2, 2))),
        posteriors=(normal(mlp((2, 2), 2 * 3)), normal(mlp(3, 2 * 2))),
    )
