"""Training of a VAE by pythae and of one by NumPyro, with each library's own networks and training loop.

The libraries are imported when they are needed.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Weights = Mapping[str, np.ndarray]


@dataclass
class Training:
    """Options of the training."""

    epochs: int = 50
    """Passes over the training data."""
    batch_size: int = 100
    """Batch size."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    latent: int = 20
    """Latent dimensions."""
    hidden: int = 400
    """Hidden units of NumPyro's networks. Those of pythae have 512."""
    seed: int = 0
    """Seed of the initial weights, the training and the evaluation."""


@dataclass(frozen=True)
class Trained:
    """A VAE as its library trained it.

    Attributes:
        weights: Tensors by the names that the library gives them.
        log_likelihood: The library's own log p(x | z) in double precision, nats. It maps ``z``, shape ``(N, latent)``,
            and ``x``, shape ``(N, *event)``, to shape ``(N,)``.
    """

    weights: Weights
    log_likelihood: Callable[[Tensor, Tensor], Tensor]


def train_pythae(train: Tensor, options: Training) -> Trained:
    """Train pythae's VAE with its default networks by its own trainer.

    Args:
        train: Training data, shape ``(N, *event)``.
        options: Options of the training.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    torch.manual_seed(options.seed)
    config = VAEConfig(input_dim=tuple(train.shape[1:]), latent_dim=options.latent, reconstruction_loss="bce")
    model = VAE(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer_config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            no_cuda=True,
        )
        BaseTrainer(model, BaseDataset(train, torch.zeros(len(train))), training_config=trainer_config).train()
    model.eval()
    exact = copy.deepcopy(model).double()

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            images, zeros = exact.decoder(z).reconstruction, torch.zeros_like(z[:1])
            pairs = zip(images[:, None], x[:, None], strict=True)  # pythae returns a mean over the data
            losses = [exact.loss_function(*pair, zeros, zeros, zeros)[1] for pair in pairs]
        return -torch.stack(losses)

    return Trained({name: value.numpy(force=True) for name, value in model.state_dict().items()}, log_likelihood)


def train_numpyro(train: Tensor, options: Training) -> Trained:
    """Train the VAE of NumPyro's example by its ``SVI``, in one compiled call per epoch.

    Args:
        train: Training data, shape ``(N, *event)``. An incomplete last batch is left out of the epoch.
        options: Options of the training.
    """
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.util import log_likelihood as numpyro_log_likelihood

    size = train[0].numel()
    into_two = stax.parallel(stax.Dense(options.latent), stax.serial(stax.Dense(options.latent), stax.Exp))
    encoder = stax.serial(stax.Dense(options.hidden), stax.Softplus, stax.FanOut(2), into_two)
    decoder = stax.serial(stax.Dense(options.hidden), stax.Softplus, stax.Dense(size), stax.Sigmoid)

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (len(x), options.latent))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(options.latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", encoder, x.shape)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(*encode(x)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(options.learning_rate), Trace_ELBO())
    images, key = jnp.asarray(train.flatten(1).numpy()), jax.random.key(options.seed)
    state = svi.init(key, images[: options.batch_size])
    whole = len(images) // options.batch_size * options.batch_size

    def epoch(state: Any, images: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(images))[:whole].reshape(-1, options.batch_size)
        return jax.lax.scan(lambda state, indices: svi.update(state, images[indices]), state, order)

    compiled = jax.jit(epoch)
    for each in jax.random.split(key, options.epochs):
        state, _ = compiled(state, images, each)
    parameters = jax.device_get(svi.get_params(state))

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        with jax.enable_x64(True):
            exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), parameters)
            trained = numpyro.handlers.substitute(model, data=exact)
            found = numpyro_log_likelihood(
                trained, {"z": jnp.asarray(z.numpy())[None]}, jnp.asarray(x.flatten(1).numpy())
            )
            return torch.tensor(np.asarray(found["x"][0]))

    return Trained(dict(leaves(parameters)), log_likelihood)


def leaves(tree: Any, name: str = "") -> list[tuple[str, np.ndarray]]:
    """Return the arrays of nested dictionaries, lists and tuples, by their path, such as ``decoder$params.0.1``."""
    if not isinstance(tree, Mapping | list | tuple):
        return [(name, np.asarray(tree))]
    parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return [leaf for key, part in parts for leaf in leaves(part, f"{name}.{key}" if name else str(key))]
