"""The models of the benchmark as NumPyro programs. Weights have the names and shapes of the torch modules."""

import math
from itertools import count
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, nn

from experiments.benchmarks.problem import Problem


class Perceptron:
    """The perceptron. Subclasses replace the prior, the likelihood, the posterior or the networks.

    Args:
        problem: Problem with the initial weights, which become parameters of NumPyro.
    """

    event_dim = 1

    def __init__(self, problem: Problem) -> None:
        self.weights = {name: jnp.asarray(value) for name, value in problem.weights.items()}
        self.latent = problem.sizes.latent

    def trained(self) -> dict[str, Array]:
        """Return the initial weights that are trained. Masks of flows and the order of dimensions are constants."""
        return {name: value for name, value in self.weights.items() if not name.endswith(("mask", "order"))}

    def model(self, x: Array) -> None:
        """Run the joint distribution p(x, z)."""
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", self.prior())
            self.observe(x, self.decode(z))

    def guide(self, x: Array) -> None:
        """Run the posterior q(z | x)."""
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", normal(self.encode(x)))

    def prior(self) -> Any:
        """Return p(z)."""
        return dist.Normal(jnp.zeros(self.latent), 1.0).to_event(1)

    def observe(self, x: Array, output: Array) -> None:
        """Score the data."""
        numpyro.sample("x", dist.Bernoulli(logits=output).to_event(self.event_dim), obs=x)

    def encode(self, x: Array) -> Array:
        """Return the parameters of the posterior."""
        return self.network("encoder", x)

    def decode(self, z: Array) -> Array:
        """Return the parameters of the likelihood."""
        return self.network("decoder", z)

    def network(self, name: str, x: Array) -> Array:
        """Apply a network with one hidden layer of softplus units."""
        return self.dense(f"{name}.2", nn.softplus(self.dense(f"{name}.0", x)))

    def dense(self, name: str, x: Array) -> Array:
        """Apply a linear layer, whose weight may be masked."""
        weight = self.weight(f"{name}.weight")
        if f"{name}.mask" in self.weights:
            weight = weight * self.weights[f"{name}.mask"]
        return x @ weight.T + self.weight(f"{name}.bias")

    def weight(self, name: str) -> Any:
        """Return a weight, a parameter of the program."""
        return numpyro.param(name, self.weights[name])

    def flow(self, name: str, x: Array, context: Array | None, univariate: Any) -> tuple[Array, Array]:
        """Return the result of a flow and its log-determinant."""
        total = jnp.zeros(x.shape[:-1])
        for i in count():
            layer = f"{name}.{i}.hyper"
            if f"{layer}.0.weight" not in self.weights:
                return x, total
            h = self.dense(f"{layer}.0", x if context is None else jnp.concatenate([x, context], -1))
            for j in count(2, 2):
                if f"{layer}.{j}.weight" not in self.weights:
                    break
                h = self.dense(f"{layer}.{j}", nn.relu(h))
            shift, log_scale = univariate(*jnp.moveaxis(h.reshape(*x.shape, 2), -1, 0))
            x, total = x * jnp.exp(log_scale) + shift, total + log_scale.sum(-1)
        raise AssertionError


class Convolutional(Perceptron):
    """Convolutional networks with 4 x 4 kernels and stride 2."""

    event_dim = 2

    def encode(self, x: Array) -> Array:
        """Return the parameters of the posterior."""
        x = x.reshape(len(x), -1, *x.shape[-2:])
        *layers, last = self.layers("encoder.network")
        for layer in layers:
            x = nn.relu(self.convolve(layer, x, strides=2, padding=1, transposed=False))
        return self.dense(last, x.reshape(len(x), -1))

    def decode(self, z: Array) -> Array:
        """Return the parameters of the likelihood."""
        first, *layers = self.layers("decoder.network")
        x = self.dense(first, z)
        channels = len(self.weights[f"{layers[0]}.weight"])
        side = math.isqrt(x.shape[-1] // channels)
        x = x.reshape(len(x), channels, side, side)
        for layer in layers:
            x = self.convolve(layer, nn.relu(x), strides=1, padding=2, transposed=True)
        return x[:, 0] if x.shape[1] == 1 else x

    def layers(self, name: str) -> list[str]:
        """Return the names of the layers of a network, in their order."""
        return [key.removesuffix(".weight") for key in self.weights if key.startswith(name) and key.endswith("weight")]

    def convolve(self, name: str, x: Array, *, strides: int, padding: int, transposed: bool) -> Array:
        """Apply a convolution, or a transposed convolution: that of the image with zeros between its pixels."""
        weight = self.weight(f"{name}.weight")
        if transposed:
            weight = jnp.flip(weight, (2, 3)).swapaxes(0, 1)
        x = lax.conv_general_dilated(
            x, weight, (strides, strides), [(padding, padding)] * 2, lhs_dilation=(2, 2) if transposed else (1, 1)
        )
        return x + self.weight(f"{name}.bias")[:, None, None]


class Colour(Convolutional):
    """Colour images with a discretized logistic likelihood."""

    def observe(self, x: Array, output: Array) -> None:
        """Score the data."""
        loc, log_scale = jnp.split(output, 2, axis=1)
        precision = jnp.exp(-log_scale)
        middle, half = (x - loc) * precision, precision / 510
        above, below = nn.log_sigmoid(middle + half), nn.log_sigmoid(half - middle)
        between = above + below + jnp.log(-jnp.expm1(-2 * half))
        numpyro.factor("x", jnp.where(x == 0, above, jnp.where(x == 1, below, between)).sum((1, 2, 3)))


class VampPrior(Perceptron):
    """The perceptron with a VampPrior."""

    def prior(self) -> Any:
        """Return p(z)."""
        components = normal(self.encode(self.weight("pseudo_inputs")))
        return dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(components.batch_shape)), components)


class Mixture(Perceptron):
    """The perceptron with a mixture as prior."""

    def prior(self) -> Any:
        """Return p(z)."""
        components = dist.Normal(self.weight("prior.loc"), jnp.exp(self.weight("prior.log_scale"))).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.weight("prior.logits")), components)


class FlowPrior(Perceptron):
    """The perceptron with a flow of affine coupling layers as prior."""

    def model(self, x: Array) -> None:
        """Run the joint distribution p(x, z)."""
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (self.latent,)))
            noise, log_derivative = self.flow("flow.transform.transforms", z, None, _affine)
            numpyro.factor("prior", self.prior().log_prob(noise) + log_derivative)
            self.observe(x, self.decode(z))


class InverseAutoregressive(Perceptron):
    """The perceptron with an inverse autoregressive flow as posterior."""

    def model(self, x: Array) -> None:
        """Run the joint distribution p(x, z), where z is a function of the guide's noise."""
        with numpyro.plate("data", len(x)):
            noise = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (self.latent,)))
            z, log_derivative = self.flow("flow.transforms", noise, self.encode(x)[:, 2 * self.latent :], _gate)
            numpyro.factor("prior", self.prior().log_prob(z) + log_derivative)
            self.observe(x, self.decode(z))

    def guide(self, x: Array) -> None:
        """Draw the noise of the posterior q(z | x)."""
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", normal(self.encode(x)[:, : 2 * self.latent]))


class Counts(Perceptron):
    """Counts with a negative binomial likelihood."""

    def encode(self, x: Array) -> Array:
        """Return the parameters of the posterior."""
        return self.network("encoder.network", jnp.log1p(x))

    def observe(self, x: Array, output: Array) -> None:
        """Score the data."""
        log_mean, log_dispersion = jnp.split(output, 2, -1)
        entries = dist.NegativeBinomialLogits(jnp.exp(log_dispersion), log_mean - log_dispersion)
        numpyro.sample("x", entries.to_event(1), obs=x)


class TwoLayers(Perceptron):
    """Two latent layers."""

    def model(self, x: Array) -> None:
        """Run the joint distribution p(x, z1, z2)."""
        with numpyro.plate("data", len(x)):
            z2 = numpyro.sample("z2", dist.Normal(jnp.zeros(self.latent // 2), 1.0).to_event(1))
            z1 = numpyro.sample("z1", normal(self.network("decoder2", z2)))
            self.observe(x, self.decode(z1))

    def guide(self, x: Array) -> None:
        """Run the posterior q(z1, z2 | x)."""
        with numpyro.plate("data", len(x)):
            z1 = numpyro.sample("z1", normal(self.encode(x)))
            numpyro.sample("z2", normal(self.network("encoder2", z1)))


class Markov(Perceptron):
    """The deep Markov model."""

    def model(self, x: Array) -> None:
        """Run the joint distribution p(x, z)."""
        output = jnp.zeros((len(x), 2 * self.latent))
        with numpyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = numpyro.sample(f"z_{t}", normal(output))
                logits = self.network("dmm.emitter", z)
                numpyro.sample(f"x_{t}", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])
                output = jnp.tanh(self.network("dmm.transition.0", z))

    def guide(self, x: Array) -> None:
        """Run the posterior q(z | x)."""
        weights = {key: self.weight(f"dmm.rnn.{key}_l0") for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        states = [jnp.zeros((len(x), len(weights["bias_hh"])))]
        for t in reversed(range(x.shape[1])):
            read = x[:, t] @ weights["weight_ih"].T + weights["bias_ih"]
            states.insert(0, jnp.tanh(read + states[0] @ weights["weight_hh"].T + weights["bias_hh"]))
        z = jnp.zeros((len(x), self.latent))
        with numpyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                output = jnp.tanh(self.dense("dmm.combiner.0", jnp.concatenate([z, states[t]], -1)))
                z = numpyro.sample(f"z_{t}", normal(output))


def normal(output: Array) -> Any:
    """Return a normal distribution, given a network's output."""
    loc, log_scale = jnp.split(output, 2, axis=-1)
    return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)


def _affine(shift: Array, scale: Array) -> tuple[Array, Array]:
    """Return shift and log-scale of zuko's affine layer, whose scale is at least 0.001."""
    return shift, scale / (1 + jnp.abs(scale / math.log(1e-3)))


def _gate(m: Array, s: Array) -> tuple[Array, Array]:
    """Return shift and log-scale of a gated layer."""
    return nn.sigmoid(-s - 2) * m, nn.log_sigmoid(s + 2)


MODELS: dict[str, type[Perceptron]] = {
    "perceptron": Perceptron,
    "convolutional": Convolutional,
    "colour": Colour,
    "vampprior": VampPrior,
    "mixture": Mixture,
    "flow_prior": FlowPrior,
    "inverse_autoregressive": InverseAutoregressive,
    "counts": Counts,
    "two_layers": TwoLayers,
    "markov": Markov,
}
