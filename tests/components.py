"""One instance of every prior, likelihood and posterior. A new component needs one line here."""

import pyro.distributions as dist
import torch
import zuko
from torch import nn

from pyrovae import flows, likelihoods, networks, posteriors, priors


class _OfVAE(nn.Module):
    """A VampPrior with its posterior, as in a VAE."""

    def __init__(self, prior: priors.VampPrior, posterior: nn.Module) -> None:
        super().__init__()
        self.prior, self.posterior = prior, posterior

    def forward(self) -> dist.TorchDistribution:
        self.prior.bind_components(posterior=self.posterior)
        return self.prior()


torch.manual_seed(0)  # networks are made at import, before a test sets a seed

PRIORS = {
    "StandardNormal": priors.StandardNormal(3),
    "Fixed": priors.Fixed(dist.Laplace(torch.zeros(3), 1.0).to_event(1)),
    "GaussianMixture": priors.GaussianMixture(3, components=4),
    "VampPrior": _OfVAE(priors.VampPrior(4, (5,)), posteriors.DiagonalNormal(networks.mlp(5, 2 * 3))),
    "NormalizingFlow": priors.NormalizingFlow(3),
    "NormalizingFlow, autoregressive": priors.NormalizingFlow(3, flows.autoregressive(3, depth=2, hidden=(16,))),
    "NormalizingFlow, spline": priors.NormalizingFlow(3, flows.coupling(3, depth=2, univariate="spline")),
    "NormalizingFlow of a mixture": priors.NormalizingFlow(3, base=priors.GaussianMixture(3)),
    "NormalizingFlow of zuko": priors.NormalizingFlow(3, zuko.flows.NICE(3, transforms=2).transform.inv),
    "a lambda": lambda: dist.Laplace(torch.zeros(3), torch.ones(3)).to_event(1),
}


LIKELIHOODS = {
    "Bernoulli": likelihoods.Bernoulli(networks.mlp(3, 8, (4, 5))),
    "Bernoulli, convolutional": likelihoods.Bernoulli(networks.conv_decoder(3, 4, out_shape=(4, 6))),
    "Normal, fixed": likelihoods.Normal(networks.mlp(3, 8, (4, 5)), scale=0.1),
    "Normal, learned": likelihoods.Normal(networks.mlp(3, 8, (4, 5)), scale=0.1, learn_scale=True),
    "Normal, by network": likelihoods.Normal(networks.mlp(3, 8, (4, 10)), scale=None),
    "Normal, with a floor": likelihoods.Normal(networks.mlp(3, 8, (4, 10)), scale=None, min_scale=0.1),
    "Laplace": likelihoods.Laplace(networks.mlp(3, 8, (4, 5)), scale=0.1),
    "StudentT": likelihoods.StudentT(networks.mlp(3, 8, (4, 10)), scale=None, df=3.0),
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli(networks.mlp(3, 8, (4, 5))),
    "Beta": likelihoods.Beta(networks.mlp(3, 8, (4, 10))),
    "Binomial": likelihoods.Binomial(networks.mlp(3, 8, (4, 5)), 16),
    "Binomial in a unit": likelihoods.Binomial(networks.mlp(3, 8, (4, 5)), 16, unit=1 / 16),
    "Poisson": likelihoods.Poisson(networks.mlp(3, 8, (4, 5))),
    "NegativeBinomial": likelihoods.NegativeBinomial(networks.mlp(3, 8, (4, 10))),
    "NegativeBinomial with excess zeros": likelihoods.NegativeBinomial(networks.mlp(3, 8, (4, 15)), zero_inflated=True),
    "Categorical": likelihoods.Categorical(networks.mlp(3, 8, (4, 256 * 5)), unit=1 / 255),
    "DiscretizedLogistic": likelihoods.DiscretizedLogistic(networks.mlp(3, 8, (4, 10)), unit=1 / 255),
    "DiscretizedLogisticMixture": likelihoods.DiscretizedLogisticMixture(networks.mlp(3, 8, (4, 60)), 4, unit=1 / 255),
}


POSTERIORS = {
    "DiagonalNormal": posteriors.DiagonalNormal(networks.mlp((4, 6), 8, 6)),
    "DiagonalNormal, convolutional": posteriors.DiagonalNormal(networks.conv_encoder((4, 6), 4, out_shape=6)),
    "Laplace": posteriors.Laplace(networks.mlp((4, 6), 8, 6)),
    "StudentT": posteriors.StudentT(networks.mlp((4, 6), 8, 6)),
    "MultivariateNormal": posteriors.MultivariateNormal(networks.mlp((4, 6), 8, 9)),
    "MultivariateNormal, low rank": posteriors.MultivariateNormal(networks.mlp((4, 6), 8, 9), rank=1),
    "InverseAutoregressiveFlow": posteriors.InverseAutoregressiveFlow(networks.mlp((4, 6), 8, 6 + 2), 3, context=2),
    "InverseAutoregressiveFlow without context": posteriors.InverseAutoregressiveFlow(networks.mlp((4, 6), 8, 6), 3),
    "NormalizingFlow": posteriors.NormalizingFlow(
        posteriors.StudentT(networks.mlp((4, 6), 8, 6)), flows.coupling(3, context=2), networks.mlp((4, 6), 2)
    ),
}
