"""An HTML page of a latent space: the reader moves through the space, and the browser decodes the latents."""

import html
import json
import os
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.isolation import isolated
from pyrovae.models.programs import run_component
from pyrovae.plots.page.network import FUNCTIONS, write_down

_RANGE_DRAWS, _PAGE_DRAWS = 2000, 200


def explorer(
    vae: Any,
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    plane: tuple[int, int] | None = None,
    title: str = "Latent space",
    seed: int = 0,
) -> Path:
    r"""Write an HTML page on which the reader drags a latent point and sees the mean of :math:`p(x \mid z)`.

    The page is a single file that includes the weights of the likelihood. The page needs neither Python nor a network
    connection. It computes in double precision with float32 weights. Images are grey or in colour with values in [0,
    1]; other values are clipped.

    Any likelihood can be shown, including your own, because the operations that compute its mean are recorded during a
    run. The page has kernels for dense layers, 2-d convolutions, sums, and element-wise functions.

    Args:
        vae: A VAE, or another object with a ``prior`` and a ``likelihood`` of a single vector z. The object is not
            changed.
        path: The file to write, such as ``"explorer.html"``.
        shape: Shape of an image, if a datum is a vector: ``(28, 28)`` for 784 pixels, ``(3, 32, 32)`` for colour.
        plane: Two latent dimensions, counted from 0, that the page shows first; by default the two dimensions that
            change the images most.
        title: Heading of the page.
        seed: Seed of the 200 draws from the prior that the page contains. The page starts at the first draw.

    Returns:
        Path of the page.

    Raises:
        TypeError: If the object lacks ``prior`` or ``likelihood``.
        ValueError: If z is not a vector of real numbers, if a datum is not an image, if the page has no kernel for an
            operation that computes the mean, or if ``plane`` does not name two different latent dimensions.

    Source:
        *Auto-Encoding Variational Bayes* (Kingma and Welling, 2014), figure 4.

    Example:
        >>> import pyrovae as pv, tempfile
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.mlp(2, 16, (8, 8))),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp((8, 8), 16, 2 * 2)),
        ... )
        >>> page = pv.plots.explorer(vae, tempfile.mkdtemp() + "/explorer.html")
        >>> page.stat().st_size < 1e5
        True
    """
    for role in ("prior", "likelihood"):
        if not callable(getattr(vae, role, None)):
            name = type(vae).__name__
            raise TypeError(f"explorer needs a model with one prior and one likelihood, but a {name} has no {role}")
    with isolated(vae, seed=seed), pyro.validation_enabled(False):
        draws = _draws(run_component("prior", vae.prior, batch_shape=torch.Size()))
        mean = _mean(vae.likelihood)
        image = _image_shape(mean(draws[:1]).shape[1:], shape)
        ranges = [_range(column) for column in draws.T.tolist()]
        if plane is not None and (len(set(plane)) != 2 or not set(plane) <= set(range(len(ranges)))):
            raise ValueError(
                f"plane must hold two different indices of the {len(ranges)} latent dimensions, counted from 0, got "
                f"{plane}"
            )
        network = write_down(mean, draws[:1])
        shown = plane or _most_visible(mean, draws[:16], ranges)
    latents = {"draws": draws[:_PAGE_DRAWS].tolist(), "ranges": ranges, "plane": shown, "shape": image}
    path = Path(path)
    path.write_text(_page(title, network.written(), latents), encoding="utf-8")
    return path


def _draws(prior: Any) -> Tensor:
    """Return draws from the prior, shape ``(n, latent)``."""
    if len(prior.event_shape) != 1 or prior.support.is_discrete:
        raise ValueError(
            f"explorer needs a prior over vectors of real numbers. The prior is a {type(prior).__name__} with event "
            f"shape {tuple(prior.event_shape)} and support {prior.support}."
        )
    draws: Tensor = prior.sample((_RANGE_DRAWS,))
    return draws


def _mean(likelihood: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def mean(z: Tensor) -> Tensor:
        p = run_component("likelihood", likelihood, z, batch_shape=z.shape[:-1])
        try:
            value: Tensor = p.mean
        except NotImplementedError as error:
            raise ValueError(
                f"explorer shows the mean of p(x | z), but a {type(p).__name__} has no mean. Add the property mean."
            ) from error
        return value

    return mean


def _image_shape(event: Sequence[int], shape: Sequence[int] | None) -> tuple[int, int, int]:
    """Return channels, height and width of a datum."""
    found = tuple(event if shape is None else shape)
    image = (1, *found) if len(found) == 2 else found
    if torch.Size(found).numel() != torch.Size(event).numel():
        raise ValueError(
            f"a datum of shape {tuple(event)} is not an image of shape={found}, because the numbers of entries differ. "
            f"Pass a shape with as many entries as a datum."
        )
    if len(image) != 3 or image[0] not in (1, 3):
        hint = ". If the datum is a flattened image, pass shape=(height, width)" if len(found) == 1 else ""
        raise ValueError(
            f"explorer shows images of shape (height, width), (1, height, width) or (3, height, width), but a datum "
            f"has shape {found}{hint}"
        )
    return image[0], image[1], image[2]


def _range(values: list[float]) -> tuple[float, float]:
    """Return the 0.5% and 99.5% quantiles of values, rounded outwards, such as -3 and 3 for a standard normal."""
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.005, 0.995], dtype=torch.float64))
    unit = 10.0 ** (torch.log10((high - low).clamp(min=1e-6) / 4).floor())
    return round(float((low / unit).floor() * unit), 9), round(float((high / unit).ceil() * unit), 9)


def _most_visible(
    mean: Callable[[Tensor], Tensor], codes: Tensor, ranges: Sequence[tuple[float, float]]
) -> tuple[int, ...]:
    """Return the two latent dimensions that change the images most when each is varied over its range."""
    changes = []
    for dimension, ends in enumerate(ranges):
        low, high = (codes.index_fill(1, torch.tensor(dimension, device=codes.device), end) for end in ends)
        changes.append(float((mean(high) - mean(low)).square().mean()))
    return tuple(sorted(sorted(range(len(changes)), key=changes.__getitem__, reverse=True)[:2]))


def _page(title: str, network: dict[str, Any], latents: dict[str, Any]) -> str:
    used = sorted({step["function"] for step in network["steps"] if step["kernel"] == "map"})
    functions = ", ".join(f"{name}: (a, b, c) => {FUNCTIONS[name]}" for name in used)
    folder = resources.files(__package__)
    script, page = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("network.js", "explorer.html"))
    parts = {
        "title": html.escape(title),
        "network": json.dumps(network, separators=(",", ":")),
        "latents": json.dumps(latents, separators=(",", ":")),
        "network.js": script.replace("/* functions */", f" {functions} "),
        "explorer.js": folder.joinpath("explorer.js").read_text(encoding="utf-8"),
    }
    return re.sub(r"{{([a-z.]+)}}", lambda place: parts[place[1]], page)
