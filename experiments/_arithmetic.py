r"""Move codes in latent space, and measure how the decoded images change.

The direction of an attribute a is the slope of the mean code as a function of the attribute. A code is moved by

.. math:: z \mapsto z + \delta\, d, \qquad d = \frac{\mathrm{Cov}(z, a)}{\mathrm{Var}(a)}.

One class is exchanged for another by adding the difference between the mean codes of the two classes. Both directions
are estimated from the training data, and the codes of the test data are moved. Thickness, slant and class are measured
from pixels only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor

import pyrovae as pv
from experiments._strokes import ATTRIBUTES, measure

STEPS = (-2, -1, 1, 2)  # standard deviations of an attribute
Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Digits:
    """Digits as a model receives them, together with their grey values before binarization."""

    x: Tensor
    grey: Tensor
    labels: Tensor

    @cached_property
    def attributes(self) -> dict[str, Tensor]:
        """Return the thickness and the slant of the grey digits."""
        return measure(self.grey)


@dataclass(frozen=True)
class Space:
    """A trained model, with the data that define directions in its latent space."""

    vae: pv.VAE
    train: Digits
    test: Digits

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the means of q(z | x), shape ``(n, latent)``."""
        codes: Tensor = self.vae.posterior(x.to(self._device)).mean
        return codes.cpu()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the means of p(x | z), shape ``(*batch, height, width)``."""
        images: Tensor = self.vae.likelihood(z.float().to(self._device)).mean
        return images.cpu()

    @cached_property
    def codes(self) -> Tensor:
        """Codes of the test data, shape ``(n, latent)``."""
        return self.encode(self.test.x)

    @cached_property
    def train_codes(self) -> Tensor:
        """Codes of the training data, shape ``(n, latent)``."""
        return self.encode(self.train.x)

    @property
    def _device(self) -> torch.device:
        return next(self.vae.parameters()).device


def attribute_direction(space: Space, name: str) -> Tensor:
    """Return the change of the code per unit of an attribute, shape ``(latent,)``."""
    z, a = space.train_codes.double(), space.train.attributes[name]
    return (z - z.mean(0)).T @ (a - a.mean()) / ((a - a.mean()) ** 2).sum()


def move_attribute(space: Space, name: str, classify: Classifier, seed: int) -> dict[str, np.ndarray | float]:
    """Move the codes of the test data along the direction of an attribute, and by the same length in random directions.

    Returns:
        The changes are in standard deviations of the attributes over the test data. ``asked``, shape ``(steps,)``, is
        the requested change of the attribute. ``shown``, ``other`` and ``random``, each of shape ``(steps, n)``, are
        the measured changes: of the attribute, of the other attribute, and of the attribute after a random move.
        ``kept`` is the fraction of the images whose class stays the same. ``readout`` is the R^2 of a linear
        regression of the attribute on the code.
    """
    direction, scale = attribute_direction(space, name), float(space.test.attributes[name].std())
    (other,) = set(ATTRIBUTES) - {name}
    noise = torch.randn(space.codes.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spread = torch.linalg.cholesky(torch.cov(space.train_codes.double().T).reshape(noise.shape[1], -1))
    random = noise @ spread.T
    random *= direction.norm() / random.norm(dim=1, keepdim=True)

    before = measure(space.decode(space.codes))
    shown, others, randomly, kept = [], [], [], []
    for step in STEPS:
        images = space.decode(space.codes + step * scale * direction)
        after, after_random = measure(images), measure(space.decode(space.codes + step * scale * random))
        shown.append((after[name] - before[name]) / scale)
        others.append((after[other] - before[other]) / space.test.attributes[other].std())
        randomly.append((after_random[name] - before[name]) / scale)
        kept.append((classify(images) == space.test.labels).double().mean())
    readout = LinearRegression().fit(space.train_codes, space.train.attributes[name])
    return {
        "asked": np.array(STEPS, float),
        "shown": torch.stack(shown).numpy(),
        "other": torch.stack(others).numpy(),
        "random": torch.stack(randomly).numpy(),
        "kept": float(np.mean(kept)),
        "readout": float(readout.score(space.codes, space.test.attributes[name])),
    }


def slopes(asked: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return the least-squares slope, through the origin, of the measured on the requested change, shape ``(n,)``."""
    fitted: np.ndarray = asked @ shown / (asked @ asked)
    return fitted


def class_means(space: Space) -> dict[int, Tensor]:
    """Return the mean code of each class of the training data, shape ``(latent,)``."""
    labels = space.train.labels
    return {label: space.train_codes[labels == label].mean(0) for label in labels.unique().tolist()}


def exchange_class(space: Space, seed: int) -> tuple[Tensor, Tensor]:
    """Return the codes of the test data, moved to another class drawn at random, and the new classes."""
    classes, means = space.train.labels.unique(), torch.stack(list(class_means(space).values()))
    own = torch.searchsorted(classes, space.test.labels)
    shift = torch.randint(1, len(classes), own.shape, generator=torch.Generator().manual_seed(seed))
    new = (own + shift) % len(classes)
    return space.codes + means[new] - means[own], classes[new]


def pairs(space: Space, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the codes of ``count`` random pairs of test data whose classes differ."""
    drawn = np.random.RandomState(seed).randint(len(space.codes), size=(2, 20 * count))
    differ = (space.test.labels[drawn[0]] != space.test.labels[drawn[1]]).numpy()
    first, second = drawn[:, differ][:, :count]
    return space.codes[first], space.codes[second]


def interpolate(start: Tensor, end: Tensor, steps: int, *, spherical: bool) -> Tensor:
    r"""Return codes on the path from ``start`` to ``end``, shape ``(steps, *batch, latent)``.

    The straight path is :math:`(1 - t) z_0 + t z_1`. The spherical path turns about the origin by the angle
    :math:`\omega` between the codes. Its direction is that of
    :math:`\sin((1 - t) \omega)\, z_0 / \|z_0\| + \sin(t \omega)\, z_1 / \|z_1\|`, and its norm is
    :math:`(1 - t) \|z_0\| + t \|z_1\|`.

    Source:
        *Animating Rotation with Quaternion Curves* (Shoemake, 1985); for latent codes *Sampling Generative Networks*
        (White, 2016).
    """
    t = torch.linspace(0, 1, steps).reshape(-1, *[1] * start.ndim)
    if not spherical:
        return (1 - t) * start + t * end
    lengths = [z.norm(dim=-1, keepdim=True) for z in (start, end)]
    angle = torch.cosine_similarity(start, end, dim=-1).clamp(-1, 1).acos().unsqueeze(-1)
    direction = ((1 - t) * angle).sin() * start / lengths[0] + (t * angle).sin() * end / lengths[1]
    return torch.nn.functional.normalize(direction, dim=-1) * ((1 - t) * lengths[0] + t * lengths[1])
