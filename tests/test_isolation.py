"""Evaluation changes nothing."""

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evaluation import active_units, evaluate, log_weights
from tests.conftest import small_vae


class Counter(nn.Module):
    """A network with state: batch normalization, dropout, and a buffer that counts calls even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.last + z.sum()  # puts another tensor in the buffer's place
        return self.layers(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)


def test_evaluation_changes_nothing(x: Tensor) -> None:
    vae = small_vae()
    vae.likelihood = pv.likelihoods.Bernoulli(Counter())
    vae.train()
    vae.guide.eval()
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    modes = [module.training for module in vae.modules()]
    generators = torch.get_rng_state(), np.random.get_state()[1].copy()
    settings = pyro.infer.util.is_validation_enabled(), torch.is_grad_enabled()
    for _ in range(2):
        evaluate(vae.model, pyro.poutine.scale(vae.guide, 1.0), x, 5)
        log_weights(vae.model, vae.guide, x, 5, seed=1)
        active_units(vae.guide, x)
        with pytest.raises(ValueError, match="Bernoulli"):
            evaluate(vae.model, vae.guide, x / 2, 5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert [module.training for module in vae.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1] == generators[1]).all()
    assert (pyro.infer.util.is_validation_enabled(), torch.is_grad_enabled()) == settings


def test_dropout_and_batch_norm_are_in_evaluation_mode(x: Tensor) -> None:
    vae = small_vae()
    vae.likelihood = pv.likelihoods.Bernoulli(Counter())
    torch.testing.assert_close(
        log_weights(vae.model, vae.guide, x, 5, seed=1), log_weights(vae.model.eval(), vae.guide.eval(), x, 5, seed=1)
    )
