"""pythae: its VAE or IWAE with the networks of the benchmark, trained by its own trainer and data loader.

Its VAE uses the closed form of the KL divergence. The loss of its IWAE has the gradient of the bound but another value,
so only the gradient is reported for several draws per datum. The trainer trains for a given number of epochs, so a
callback ends the turns.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn

from experiments.benchmarks.networks import finish, make, state
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.rounds import Channel


class Encoder(BaseEncoder):
    """Encoder that returns locations and log-variances, which pythae calls log-covariance."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        """Encode ``x``, shape ``(N, pixels)``."""
        loc, log_scale = self.network(x).chunk(2, -1)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    """Decoder that returns probabilities, the input of pythae's binary cross-entropy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> ModelOutput:
        """Decode ``z``, shape ``(N, latent)``."""
        return ModelOutput(reconstruction=self.network(z).sigmoid())


class Turns(TrainingCallback):
    """Callback that makes the next epoch wait for its turn."""

    def __init__(self, channel: Channel, problem: Problem) -> None:
        self.channel, self.problem = channel, problem

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """End the turn of the previous epoch, if there was one, and wait for the turn of the next epoch."""
        finish(self.problem)
        if not self.channel.turn():
            raise KeyboardInterrupt


def main(problem: Problem) -> None:
    """Train for one epoch in a turn."""
    sizes = problem.sizes
    if sizes.model != "perceptron":
        raise ValueError(
            f"pythae has no model like {sizes.model!r}, so only its perceptron can be compared. Leave pythae out of "
            f"--contenders."
        )
    common = {"input_dim": (problem.x.shape[1],), "latent_dim": sizes.latent, "reconstruction_loss": "bce"}
    networks = Encoder(make(problem, "encoder")), Decoder(make(problem, "decoder"))
    if sizes.k == 1:
        vae = VAE(VAEConfig(**common), *networks)
    else:
        vae = IWAE(IWAEConfig(**common, number_samples=sizes.k), *networks)
    vae.to(sizes.device)
    facts = state(problem, vae, lambda x: vae({"data": x}).loss, "torch.randn_like", draws=0 if sizes.k == 1 else 1)
    if sizes.k > 1:
        del facts["loss"]
    data = BaseDataset(torch.from_numpy(problem.x), torch.zeros(sizes.num_data))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=10**6,
            per_device_train_batch_size=sizes.batch_size,
            learning_rate=sizes.learning_rate,
            no_cuda=sizes.device == "cpu",
        )
        channel = Channel("pythae", **facts)
        trainer = BaseTrainer(vae, data, training_config=config, callbacks=[Turns(channel, problem)])
        try:
            trainer.train()
        except KeyboardInterrupt:
            channel.close()


if __name__ == "__main__":
    main(Problem.read(Path(sys.argv[1])))
