"""A small classifier of the data, whose features compare images by more than their pixels.

The classifier is trained anew for each of two uses: to measure the distance between samples and data, and as a training
target of a VAE. The second use is a Pyro program. Its observed sites are the features of an image, under normal
distributions around the features of the decoded mean. Its ELBO bounds the density of the features and not that of x,
because many images have the same features.

Source: *Deep Feature Consistent Variational Autoencoder* (Hou, Shen, Sun and Qiu, 2017), with a classifier of the data
in place of its VGG network.
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
    """Classifier with two 3 x 3 convolutions, each followed by pooling, and a hidden layer; its outputs are features.

    Args:
        image: Shape of an image, with height and width divisible by 4.
        classes: Number of classes.
        channels: Channels of the first convolution. The second has twice as many.
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
        """Return the outputs of the layers for images, shape ``(*batch, height, width)``."""
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy, shape ``()``, for labels as one-hot vectors."""
        return cross_entropy(self.output(self.features(x)[-1]), labels)

    @torch.no_grad()
    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Return the fraction of images whose label is the most probable."""
        return float((self.output(self.features(x)[-1]).argmax(-1) == labels).double().mean())


def _layer(*modules: nn.Module, event_dim: int) -> nn.Module:
    return pv.networks.Batched(nn.Sequential(*modules, nn.ReLU()), event_dim)


def train_classifier(
    splits: pv.data.Splits, options: comparison.Options, epochs: int, seed: int
) -> tuple[Classifier, float]:
    """Train a classifier of the data, and return it frozen, with its accuracy on the validation data."""
    if splits.labels is None:
        raise ValueError(f"{splits.name} has no labels to train a classifier with. Choose a data set with labels.")
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
    """A VAE that is trained to preserve the convolutional features of an image.

    Args:
        vae: VAE whose likelihood's mean is the decoded image.
        classifier: Frozen classifier with the features.
        scale: Scale of the normal distributions, which weights the squared feature distance against the KL term.
    """

    def __init__(self, vae: pv.VAE, classifier: Classifier, scale: float) -> None:
        super().__init__()
        self.vae, self.classifier, self.scale = vae, classifier, scale

    def model(self, x: Tensor) -> None:
        """Run the Pyro model of the features of images ``x``, shape ``(N, height, width)``."""
        with pyro.plate("data", len(x)):
            decoded = self.vae.likelihood(pyro.sample("z", self.vae.prior())).mean
            *locs, _ = self.classifier.features(decoded)
            *values, _ = self.classifier.features(x)
            for i, (loc, value) in enumerate(zip(locs, values, strict=True)):
                pyro.sample(f"features_{i}", dist.Normal(loc, self.scale).to_event(3), obs=value)

    def guide(self, x: Tensor) -> None:
        """Run the guide of the VAE."""
        self.vae.guide(x)
