"""pythae: its VAE or IWAE with networks of our sizes, trained by its own trainer, data loader included.

Its VAE takes the KL divergence in closed form. The loss of its IWAE is another number with the gradient of the bound,
so that only the gradient is stated for several draws per datum. The trainer trains for as many epochs as it is told to,
so here it asks for its turns itself, by a callback.
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
    """Gives locations and log-variances, which is what pythae calls the log-covariance."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        """Encodes ``x``, shape ``(N, pixels)``."""
        loc, log_scale = self.network(x).chunk(2, -1)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    """Gives probabilities, which is what pythae's binary cross-entropy takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> ModelOutput:
        """Decodes ``z``, shape ``(N, latent)``."""
        return ModelOutput(reconstruction=self.network(z).sigmoid())


class Turns(TrainingCallback):
    """Keeps the next epoch waiting for its turn."""

    def __init__(self, channel: Channel, problem: Problem) -> None:
        self.channel, self.problem = channel, problem

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Ends the turn of the epoch before, if there was one, and waits for that of the next."""
        finish(self.problem)
        if not self.channel.turn():
            raise KeyboardInterrupt


def main(problem: Problem) -> None:
    """Trains, an epoch a turn."""
    sizes = problem.sizes
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
