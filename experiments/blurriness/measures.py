r"""Measures of the sharpness of images, and of the distance between samples and data.

Images, shape ``(n, height, width)``, are measured as they are displayed, clipped to [0, 1].

* Sharpness: the variance of an image's Laplacian, the focus measure of photography, relative to real images. Smoothed
  edges lower it and pixel noise raises it, so a value of 1 is right, and a larger value is not better. For white noise
  of variance :math:`\sigma^2` it is :math:`20\, \sigma^2`, by the sum of the filter's squared coefficients.
* Grey ink: :math:`\sum_i x_i (1 - x_i) / \sum_i x_i`, the grey fraction of the ink; 0 for black and white.
* Power spectrum: squared Fourier coefficients against spatial frequency. It shows the scale at which detail is lost.
* Detail: power between 0.1 and 0.3 cycles per pixel, relative to real images. Edges of strokes lie at these
  frequencies, while pixel noise dominates at higher ones. Unlike the Laplacian, this measure distinguishes edges from
  speckle.
* Kernel distance: squared maximum mean discrepancy of features a, b of dimension d under
  :math:`k(a, b) = (a^\top b / d + 1)^3`, in units in which real features have a mean square of 1. The estimate is
  unbiased, so it is about 0 for a second sample of real data.
* Coverage: the fraction of real images that have a generated image closer than their k-th nearest real neighbour.
  Missing modes lower it. For a second sample of real data it is about :math:`1 - 2^{-k}`.

Source: *Wasserstein Auto-Encoders* (Tolstikhin, Bousquet, Gelly and Schölkopf, 2018), for the Laplacian of samples;
*Demystifying MMD GANs* (Binkowski, Sutherland, Arbel and Gretton, 2018); *Reliable Fidelity and Diversity Metrics for
Generative Models* (Naeem, Oh, Uh, Choi and Yoo, 2020).
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

DETAIL = (0.1, 0.3)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def laplacian_variance(images: Tensor) -> Tensor:
    """Return the variance of each image's Laplacian over its inner pixels, shape ``(n,)``."""
    kernel = images.new_tensor(LAPLACIAN)[None, None]
    return conv2d(images[:, None], kernel).flatten(1).var(-1, correction=0)


def grey_ink(images: Tensor) -> Tensor:
    """Return the grey fraction of each image's ink, shape ``(n,)``; 0 for an empty image."""
    ink = images.flatten(1).sum(-1)
    grey = (images * (1 - images)).flatten(1).sum(-1)
    return torch.where(ink > 0, grey / ink.clamp(min=torch.finfo(ink.dtype).tiny), 0.0)


def power_spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean power over images and directions against the spatial frequency.

    Returns:
        Frequencies in cycles per pixel, up to 1/2, and the power at each of them.
    """
    size = images.shape[-1]
    power = torch.fft.fft2(images).abs().square().mean(0) / images[0].numel()
    axes = [torch.fft.fftfreq(side, dtype=images.dtype) for side in images.shape[-2:]]
    ring = (torch.hypot(axes[0][:, None], axes[1]) * size).round().long()
    rings = torch.arange(1, size // 2 + 1)
    return rings / size, torch.stack([power[ring == r].mean() for r in rings])


def detail(images: Tensor, real: Tensor) -> float:
    """Return the power of the middle frequencies, relative to that of real images."""
    (frequency, power), (_, expected) = power_spectrum(images), power_spectrum(real)
    band = (frequency >= DETAIL[0]) & (frequency <= DETAIL[1])
    return float(power[band].sum() / expected[band].sum())


def kernel_distance(real: Tensor, generated: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of features, shapes ``(n, d)`` and ``(m, d)``."""
    unit = real.double().square().mean().sqrt()
    a, b = real.double() / unit, generated.double() / unit

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.T / first.shape[1] + 1) ** 3

    def within(sample: Tensor) -> Tensor:
        k, n = kernel(sample, sample), len(sample)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def coverage(real: Tensor, generated: Tensor, k: int = 5) -> float:
    """Return the fraction of real features with a generated neighbour, from shapes ``(n, d)`` and ``(m, d)``."""
    radius = torch.cdist(real, real).kthvalue(k + 1).values  # the smallest distance is that of a point to itself
    return float((torch.cdist(real, generated).min(-1).values <= radius).double().mean())
