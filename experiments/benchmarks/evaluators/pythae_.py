"""pythae: ``get_nll`` of its VAE, which encodes every image again for each batch of its draws.

Version 0.1.2 returns the mean of log p(x), not of its negative, and drops an incomplete last batch of draws.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from pythae.models import VAE, VAEConfig

from experiments.benchmarks.estimates import enter
from experiments.benchmarks.networks import make, to_device
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.trainers.pythae_ import Decoder, Encoder


def main(problem: Problem, batch_size: int) -> None:
    """Evaluate all images in a turn, with ``batch_size`` draws at once."""
    draws, batch_size = problem.sizes.k, min(batch_size, problem.sizes.k)
    if draws % batch_size:
        raise ValueError(f"get_nll makes whole batches of draws. batch_size={batch_size} must divide draws={draws}.")
    x, noise = to_device(problem, problem.x), to_device(problem, problem.noise)
    config = VAEConfig(input_dim=(x.shape[1],), latent_dim=problem.sizes.latent, reconstruction_loss="bce")
    vae = VAE(config, Encoder(make(problem, "encoder")), Decoder(make(problem, "decoder"))).to(x.device).eval()

    @torch.no_grad()
    def estimate() -> np.ndarray:
        return np.array(vae.get_nll(x, n_samples=draws, batch_size=batch_size))

    @torch.no_grad()
    def from_given_noise() -> np.ndarray:
        drawing, values = vae._sample_gauss, []
        for image, own in zip(x, noise.unbind(1), strict=False):
            vae._sample_gauss = lambda loc, scale, own=own: (loc + scale * own, own)
            values.append(vae.get_nll(image[None], n_samples=len(noise), batch_size=len(noise)))
        vae._sample_gauss = drawing
        return np.array(values)

    torch.manual_seed(problem.sizes.seed)
    enter("pythae", estimate, from_given_noise)


if __name__ == "__main__":
    main(Problem.read(Path(sys.argv[1])), int(sys.argv[2]))
