"""Compiled graphs keep the layout of images, so that densities are vectorized along pixels instead of channels."""

from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pyrovae as pv
from pyrovae._compilation.graphs import Graph


class Layouts(TorchDispatchMode):
    """Collects whether the images that convolutions return are contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.contiguous: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.contiguous.append(result.is_contiguous())
        return result


def test_images_of_a_compiled_step_are_contiguous_and_its_numbers_are_those_of_an_eager_step() -> None:
    decoder = pv.networks.conv_decoder(4, 8, out_shape=(6, 8, 8))
    vae = pv.VAE(
        pv.priors.StandardNormal(4),
        pv.likelihoods.DiscretizedLogistic(decoder, unit=1 / 255, dim=-3),
        pv.posteriors.DiagonalNormal(pv.networks.conv_encoder((3, 8, 8), 8, out_shape=8)),
    )
    x, objective, parameters = torch.randint(256, (5, 3, 8, 8)) / 255, Trace_ELBO(), list(vae.parameters())
    objective.loss(vae.model, vae.guide, x)  # determines the plates

    def loss_and_gradients() -> list[Tensor]:
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        return [loss, *torch.autograd.grad(loss, parameters)]

    with pyro.validation_enabled(False):  # a graph cannot check values
        compiled = Graph(loss_and_gradients, parameters, [x]).compile()
    torch.manual_seed(0)
    expected = loss_and_gradients()
    torch.manual_seed(0)
    with Layouts() as layouts:
        found = compiled(x)
    torch.testing.assert_close([*found], expected, rtol=1e-4, atol=1e-4)
    assert layouts.contiguous == [True, True], "one convolution of the encoder, and one of the decoder"
