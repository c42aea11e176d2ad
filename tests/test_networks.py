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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.mlp(3), "input and an output shape"),
        (lambda: networks.mlp(3, 0, 2), "must be positive"),
        (lambda: networks.mlp((), 2), "must be positive"),
        (lambda: networks.conv_encoder((28, 28), 4, 4, 4, out_shape=2), "28 x 28 cannot be halved 3 times"),
        (lambda: networks.conv_encoder((28,), 4, out_shape=2), "height, width"),
        (lambda: networks.conv_decoder(2, out_shape=(28, 28)), "at least one layer"),
        (lambda: networks.split(torch.zeros(3, 5), 2, "posteriors.X"), r"posteriors.X.*\(3, 5\).*divisible by 2"),
    ],
)
def test_bad_shapes(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
