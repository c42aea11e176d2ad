"""A deep Markov model of digits, read as seven steps of four rows. It is an ordinary Pyro program in all contenders."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from experiments.benchmarks.models import perceptron
from experiments.benchmarks.models.by_hand import bernoulli, normal, normal_draw, standard_normal
from experiments.benchmarks.networks import perceptron as network
from experiments.benchmarks.problem import Sizes

STEPS = 7


def data(sizes: Sizes) -> Tensor:
    """Return binary digits, shape ``(N, 7, 112)``."""
    return perceptron.data(sizes).unflatten(1, (STEPS, -1))


class DeepMarkovModel(nn.Module):
    """A Markov chain of latents, whose guide reads the data backwards by a recurrent network."""

    def __init__(self, sizes: Sizes, pixels: int) -> None:
        super().__init__()
        hidden, latent = sizes.hidden // 4, sizes.latent
        # The tanh bounds locations and log-scales, which would otherwise grow from step to step.
        self.transition = nn.Sequential(network(latent, hidden, 2 * latent), nn.Tanh())
        self.emitter = network(latent, hidden, pixels)
        self.rnn = nn.RNN(pixels, hidden, batch_first=True)
        self.combiner = nn.Sequential(nn.Linear(latent + hidden, 2 * latent), nn.Tanh())
        self.latent = latent

    def model(self, x: Tensor) -> None:
        """Run the joint distribution p(x, z)."""
        pyro.module("dmm", self)
        output = x.new_zeros(len(x), 2 * self.latent)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, log_scale = output.chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emitter(z)).to_event(1), obs=x[:, t])
                output = self.transition(z)

    def guide(self, x: Tensor) -> None:
        """Run the posterior q(z | x)."""
        pyro.module("dmm", self)
        seen, z = self.read(x), x.new_zeros(len(x), self.latent)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, log_scale = self.combiner(torch.cat([z, seen[:, t]], -1)).chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))

    def read(self, x: Tensor) -> Tensor:
        """Return the states of the recurrent network, each of which has read the data from its step on."""
        states, _ = self.rnn(x.flip(1))
        return states.flip(1)


def build(sizes: Sizes, x: Tensor) -> DeepMarkovModel:
    """Return the model and its guide."""
    return DeepMarkovModel(sizes, x.shape[-1])


class by_hand(nn.Module):  # noqa: N801 - the function of this model
    """Loss of the deep Markov model."""

    def __init__(self, dmm: DeepMarkovModel) -> None:
        super().__init__()
        self.dmm = dmm

    def forward(self, x: Tensor) -> Tensor:
        """Return minus the ELBO, in nats per datum."""
        dmm = self.dmm
        seen, z = dmm.read(x), x.new_zeros(len(x), dmm.latent)
        loss, output = x.new_zeros(len(x)), None
        for t in range(x.shape[1]):
            draws, log_q = normal_draw(dmm.combiner(torch.cat([z, seen[:, t]], -1)), 1)
            z = draws[0]
            log_prior = standard_normal(z) if output is None else normal(z, output)
            loss = loss + log_q[0] - log_prior - bernoulli(x[:, t], dmm.emitter(draws))[0]
            output = dmm.transition(z)
        return loss.mean()
