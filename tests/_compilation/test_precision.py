"""Matrix products in a lower precision: the operations that are rounded, and those that are not."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyrovae as pv
from pyrovae._compilation.graphs import Graph
from pyrovae._compilation.precision import products
from pyrovae.training.losses import Bound
from tests.conftest import small_vae
from tests.training.runs import assert_same_run, fitted

mlp, normal = pv.networks.mlp, pv.posteriors.DiagonalNormal

LAYERS: dict[str, Callable[[], Any]] = {
    "dense": lambda: (mlp((6, 8), 8, 4), mlp(2, 8, (6, 8))),
    "convolutional": lambda: (
        pv.networks.conv_encoder((6, 8), 4, out_shape=4),
        pv.networks.conv_decoder(2, 4, out_shape=(6, 8)),
    ),
}


def vae_of_layers(name: str) -> pv.VAE:
    encoder, decoder = LAYERS[name]()
    return pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Normal(decoder), normal(encoder))


def slopes_of(vae: pv.VAE, x: Tensor, precision: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    vae.zero_grad()
    loss = Bound(vae, Trace_ELBO(), partial(products, precision))((x,), 1.0)
    assert isinstance(loss, Tensor)
    return loss, torch.cat([parameter.grad.flatten() for parameter in vae.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("name", LAYERS)
def test_products_in_bfloat16_round_the_gradient_to_eight_bits(name: str) -> None:
    vae, x = vae_of_layers(name), torch.randn(20, 6, 8)
    (exact_loss, exact), (loss, slopes) = (slopes_of(vae, x, precision) for precision in (None, "bfloat16"))
    assert loss.dtype == slopes.dtype == torch.float32
    assert 2**-12 < (slopes - exact).norm() / exact.norm() < 2**-6
    assert 0 < (loss - exact_loss).abs() < 2**-8 * exact_loss.abs()


@pytest.mark.parametrize("name", LAYERS)
def test_densities_stay_in_float32(name: str) -> None:
    vae, x = vae_of_layers(name), torch.randn(20, 6, 8)
    with products("bfloat16"):
        tape = poutine.trace(vae.model).get_trace(x)
        tape.compute_log_prob()
    site = tape.nodes["x"]
    loc = site["fn"].base_dist.loc
    assert torch.equal(loc, loc.bfloat16().float())
    exact = dist.Normal(loc.double(), 1.0).to_event(2).log_prob(x.double())
    torch.testing.assert_close(site["log_prob"].double(), exact, rtol=1e-6, atol=0)


def test_products_of_float64_are_not_rounded() -> None:
    vae, x = vae_of_layers("dense").double(), torch.randn(20, 6, 8).double()
    assert torch.equal(slopes_of(vae, x, None)[1], slopes_of(vae, x, "bfloat16")[1])


@pytest.mark.usefixtures("interpreted")
def test_a_graph_has_its_products_in_bfloat16(x: Tensor) -> None:
    runs = [fitted(small_vae, x, precision="bfloat16", compile=is_compiled, epochs=3) for is_compiled in (False, True)]
    assert_same_run(runs[1], runs[0], tolerance=1e-6)
    assert runs[0].history.train != pytest.approx(fitted(small_vae, x, epochs=3).history.train, rel=1e-6)


@pytest.mark.usefixtures("interpreted")
def test_a_step_is_captured_in_its_precision(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret, precisions = Graph.compile, []

    def noting(graph: Graph) -> Callable[..., Sequence[Tensor]]:
        precisions.append(torch.get_float32_matmul_precision())
        return interpret(graph)

    monkeypatch.setattr(Graph, "compile", noting)
    # TF32 is a precision of CUDA devices.
    monkeypatch.setattr("pyrovae.training.gradients.compiled.check_precision", lambda *_: None)
    fitted(small_vae, x, precision="tf32", compile=True, epochs=1)
    assert {*precisions} == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("float8", r"precision must be one of \('tf32', 'bfloat16'\), .*got 'float8'"),
        ("tf32", "'tf32' is available only on CUDA devices, not on 'cpu'"),
    ],
)
def test_unknown_precisions_are_refused(precision: Any, message: str, x: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(small_vae, x, precision=precision, device="cpu")
