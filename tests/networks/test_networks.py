"""Networks keep leading dimensions."""

import pytest
import torch
from torch import nn

from pyrovae import networks

NETWORKS = {
    "mlp": (networks.mlp(4, 8, 3), (4,), (3,)),
    "linear": (networks.mlp(4, 3), (4,), (3,)),
    "mlp image to image": (networks.mlp((5, 4), 8, 8, (2, 3)), (5, 4), (2, 3)),
    "conv_encoder": (networks.conv_encoder((28, 28), 4, 8, out_shape=6), (28, 28), (6,)),
    "conv_encoder of colour": (networks.conv_encoder((3, 8, 16), 4, out_shape=6), (3, 8, 16), (6,)),
    "conv_decoder": (networks.conv_decoder(6, 8, 4, out_shape=(28, 28)), (6,), (28, 28)),
    "conv_decoder of colour": (networks.conv_decoder(6, 4, out_shape=(3, 8, 16)), (6,), (3, 8, 16)),
    "gated_mlp": (networks.gated_mlp((5, 4), 8, 8, 3), (5, 4), (3,)),
    "residual_encoder": (networks.residual_encoder((28, 28), 4, 8, 8, out_shape=6), (28, 28), (6,)),
    "residual_encoder of odd size": (networks.residual_encoder((3, 7, 10), 4, 4, out_shape=6), (3, 7, 10), (6,)),
    "residual_decoder": (networks.residual_decoder(6, 8, 4, 4, out_shape=(28, 28)), (6,), (28, 28)),
    "residual_decoder of odd size": (networks.residual_decoder(6, 4, 4, out_shape=(3, 7, 10)), (6,), (3, 7, 10)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3), (2, 0, 3)])
def test_leading_dimensions(name: str, batch: tuple[int, ...]) -> None:
    network, in_shape, out_shape = NETWORKS[name]
    x = torch.randn(*batch, *in_shape)
    y = network(x)
    assert y.shape == (*batch, *out_shape)
    if 0 not in batch and batch:
        torch.testing.assert_close(y, torch.stack([network(part) for part in x]))


def test_mlp_has_the_layers_asked_for() -> None:
    layers = [type(layer) for layer in networks.mlp((2, 2), 5, 7, activation=nn.Tanh)]
    assert layers == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear]


def test_gated_layers_multiply_by_a_gate() -> None:
    network, x = networks.gated_mlp(4, 3, 2), torch.randn(5, 4)
    value, gate = network[0](x).chunk(2, -1)
    torch.testing.assert_close(network(x), network[2](value * gate.sigmoid()))


def test_joint_broadcasts_its_inputs() -> None:
    inner = networks.mlp(28 * 28 + 5, 6)
    x, z = torch.randn(4, 28, 28), torch.randn(7, 4, 5)
    joined = networks.Joint(inner, event_dims=(2, 1))(x, z)
    assert joined.shape == (7, 4, 6)
    torch.testing.assert_close(joined[2, 3], inner(torch.cat([x[3].flatten(), z[2, 3]])))


def test_zero_filled_does_not_see_what_is_missing() -> None:
    network = networks.ZeroFilled(networks.mlp((2, 5), 6), event_dim=1)
    x, mask = torch.randn(4, 5), torch.rand(4, 5) < 0.5
    assert network(x, mask).equal(network(torch.where(mask, x, torch.full_like(x, 7.0)), mask))
    assert not network(x, mask).equal(network(x, ~mask))
    torch.testing.assert_close(network(x, mask), network.network(torch.stack([x * mask, mask.float()], dim=-2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.mlp(3), "input and an output shape"),
        (lambda: networks.mlp(3, 0, 2), "must be at least 1"),
        (lambda: networks.mlp((), 2), "must be at least 1"),
        (lambda: networks.conv_encoder((28, 28), 4, 4, 4, out_shape=2), "28 x 28 cannot be halved 3 times"),
        (lambda: networks.conv_encoder((28,), 4, out_shape=2), "height, width"),
        (lambda: networks.conv_decoder(2, out_shape=(28, 28)), "at least one layer"),
        (lambda: networks.split(torch.zeros(3, 5), 2, "posteriors.X"), r"posteriors.X.*\(3, 5\).*divisible by 2"),
        (
            lambda: networks.Joint(networks.mlp(5, 2), (1, 1))(torch.zeros(3, 5)),
            r"got 1 inputs, of shapes .* has 2 entries",
        ),
        (
            lambda: networks.Joint(networks.mlp(5, 2), (1, 1))(torch.zeros(3, 2), torch.zeros(4, 3)),
            r"shapes \[\(3, 2\), \(4, 3\)\].*do not broadcast",
        ),
        (
            lambda: networks.ZeroFilled(networks.mlp((2, 5), 2), 1)(torch.zeros(3, 5), torch.zeros(5)),
            r"mask has shape \(5,\), but the data have shape \(3, 5\)",
        ),
    ],
)
def test_bad_shapes(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
