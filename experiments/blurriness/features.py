"""A small classifier of the data, trained on the spot, whose features compare images by more than their pixels.

It serves twice, each time trained anew: to measure how near samples are to the data, and as what a VAE is trained to
keep. The latter is a Pyro program. Its observed sites are the features of an image, under normal distributions around
the features of the decoded mean, so that its ELBO bounds the density of the features, not that of x: many x have the
same features, and nothing is said about which of them is meant.

Source: *Deep Feature Consistent Variational Autoencoder* (Hou, Shen, Sun and Qiu, 2017), with a classifier of the data
for its VGG network.
"""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import pyrovae as pv
from experiments import _comparison as comparison


class Classifier(nn.Module):
    """Two 3 x 3 convolutions with pooling between and a hidden layer, whose outputs are the features.

    Args:
        image: Shape of an image, height and width divisible by 4.
        classes: Number of classes.
        channels: Channels of the first convolution; the second has twice as many.
        hidden: Width of the hidden layer.
    """

    def __init__(self, image: tuple[int, int], classes: int, channels: int = 4, hidden: int = 64) -> None:
        super().__init__()
        flat = 2 * channels * image[0] * image[1] // 16
        self.layers = nn.ModuleList(
            [
                _layer(nn.Unflatten(-2, (1, -1)), nn.Conv2d(1, channels, 3, padding=1), event_dim=2),
                _layer(nn.MaxPool2d(2), nn.Conv2d(channels, 2 * channels, 3, padding=1), event_dim=3),
                _layer(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(flat, hidden), event_dim=3),
            ]
        )
        self.output = nn.Linear(hidden, classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """The outputs of the layers for images, shape ``(*batch, height, width)``."""
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, shape ``()``, for labels as one-hot vectors."""
        return cross_entropy(self.output(self.features(x)[-1]), labels)

    @torch.no_grad()
    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of images whose label is the most probable."""
        return float((self.output(self.features(x)[-1]).argmax(-1) == labels).double().mean())


def _layer(*modules: nn.Module, event_dim: int) -> nn.Module:
    return pv.networks.Batched(nn.Sequential(*modules, nn.ReLU()), event_dim)


def train_classifier(
    splits: pv.data.Splits, options: comparison.Options, epochs: int, seed: int
) -> tuple[Classifier, float]:
    """A classifier of the data, frozen, and its accuracy on the validation data."""
    if splits.labels is None:
        raise ValueError(f"{splits.name} has no labels to train a classifier with; choose a data set that has")
    pyro.set_rng_seed(seed)
    classes = int(max(labels.max() for labels in splits.labels)) + 1
    height, width = splits.train.shape[1:]
    classifier = Classifier((height, width), classes)
    train, valid = ((x, one_hot(labels, classes).float()) for x, labels in zip(splits, splits.labels[:2], strict=False))
    settings = replace(options, epochs=epochs, kl_warmup=0, seed=seed)
    comparison.train(classifier, replace(splits, train=train, valid=valid), settings)  # type: ignore[arg-type]
    classifier.requires_grad_(False).cpu()
    return classifier, classifier.accuracy(splits.valid, splits.labels[1])


class FeatureConsistent(nn.Module):
    """A VAE that is trained to keep the features of an image's convolutions.

    Args:
        vae: Its likelihood's mean is the decoded image.
        classifier: Has the features; frozen.
        scale: Of the normal distributions: the weight of the squared distance of features against the KL term.
    """

    def __init__(self, vae: pv.VAE, classifier: Classifier, scale: float) -> None:
        super().__init__()
        self.vae, self.classifier, self.scale = vae, classifier, scale

    def model(self, x: Tensor) -> None:
        """The Pyro model of the features of images ``x``, shape ``(N, height, width)``."""
        with pyro.plate("data", len(x)):
            decoded = self.vae.likelihood(pyro.sample("z", self.vae.prior())).mean
            *locs, _ = self.classifier.features(decoded)
            *values, _ = self.classifier.features(x)
            for i, (loc, value) in enumerate(zip(locs, values, strict=True)):
                pyro.sample(f"features_{i}", dist.Normal(loc, self.scale).to_event(3), obs=value)

    def guide(self, x: Tensor) -> None:
        """The VAE's guide."""
        self.vae.guide(x)
