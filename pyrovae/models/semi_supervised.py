r"""A semi-supervised variational autoencoder (M2): known labels are data, and unknown labels are summed out.

.. math:: p(x, y, z) = p(y)\, p(z)\, p(x \mid z, y), \qquad q(y, z \mid x) = q(y \mid x)\, q(z \mid x, y).
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.components import DescribedModel
from pyrovae.models.programs import Component, Program, draw, draw_latent, emit_parameters, run_component


class SemiSupervisedVAE(DescribedModel):
    """M2 model of data ``(x, y)``, where a row of ``y`` is one-hot, or zeros if the label is unknown.

    Train it with ``objective=TraceEnum_ELBO(max_plate_nesting=1)``, which averages over an unknown label under q(y |
    x). Evaluations sum the label out exactly: they estimate log p(x) of a datum without a label, and log p(x, y) of a
    datum with a label. By Jensen's inequality, the ``elbo`` of an evaluation is at least as high as the bound that
    TraceEnum_ELBO maximizes.

    The sites are ``"y"``, the unknown label, which guide and model enumerate for every datum; ``"label"``, the known
    label; ``"z"``; and ``"x"``. If the label is known, ``"y"`` has no effect, because it has a single possible value.

    Args:
        prior: ``prior()`` returns p(z).
        label_prior: ``label_prior()`` returns p(y), a ``OneHotCategorical``. You can also pass the distribution itself.
        likelihood: ``likelihood(z, y)`` returns p(x | z, y).
        posterior: ``posterior(x, y)`` returns q(z | x, y).
        classifier: ``classifier(x)`` returns q(y | x), a ``OneHotCategorical``.
        classification_weight: Weight of log q(y | x) for known labels. In training mode (``train()``), the site
            ``"classification"`` adds this term to the bound, so that the classifier learns from known labels. The paper
            uses 0.1 times the number of data divided by the number of labelled data.

    Raises:
        ValueError: If ``classification_weight`` is negative. When run, if a label is neither a one-hot row nor a row of
            zeros, or if the shapes of a component do not fit.

    Source:
        *Semi-Supervised Learning with Deep Generative Models* (Kingma et al., 2014).

    Example:
        >>> import torch, pyrovae as pv
        >>> import pyro.distributions as dist
        >>> from pyro.infer import TraceEnum_ELBO
        >>> joint, mlp = pv.networks.Joint, pv.networks.mlp
        >>> vae = pv.SemiSupervisedVAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     label_prior=dist.OneHotCategorical(torch.ones(3)),
        ...     likelihood=pv.likelihoods.Normal(joint(mlp(2 + 3, 4), event_dims=(1, 1))),
        ...     posterior=pv.posteriors.DiagonalNormal(joint(mlp(4 + 3, 2 * 2), event_dims=(1, 1))),
        ...     classifier=pv.posteriors.OneHotCategorical(mlp(4, 3)),
        ... )
        >>> x, y = torch.randn(20, 4), torch.eye(3)[torch.arange(20) % 3]
        >>> y[5:] = 0  # only five labels are known
        >>> history = pv.fit(vae, (x, y), objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=1)
        >>> p = vae.classify(x)  # probabilities of the three classes
        >>> p.shape, torch.allclose(p.sum(1), torch.ones(20))
        (torch.Size([20, 3]), True)
    """

    def __init__(
        self,
        prior: Component,
        label_prior: Component,
        likelihood: Component,
        posterior: Component,
        classifier: Component,
        *,
        classification_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if classification_weight < 0:
            raise ValueError(f"SemiSupervisedVAE: classification_weight={classification_weight} must be at least 0")
        self.model = SemiSupervisedModel(prior, label_prior, likelihood, classification_weight)
        self.guide = SemiSupervisedGuide(posterior, classifier)
        self.model.peers, self.guide.peers = (self.guide,), (self.model,)

    @property
    def classification_weight(self) -> float:
        """Weight of log q(y | x) for known labels in training mode."""
        return self.model.classification_weight

    def __getattr__(self, name: str) -> Any:
        for program in (self.__dict__["_modules"].get(role) for role in ("model", "guide")):
            if program is not None and name in program.names:
                return program.get(name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        # As in VAE, an exchanged component is registered in its program.
        for program in (self.__dict__.get("_modules", {}).get(role) for role in ("model", "guide")):
            if program is not None and name in program.names:
                program.put(name, value)
                return
        super().__setattr__(name, value)

    @torch.no_grad()
    def generate(self, y: Tensor, *, mean: bool = False) -> Tensor:
        """Draw data with given labels.

        Args:
            y: One-hot labels, shape ``(n, classes)``.
            mean: If true, E[x | z, y] is returned instead of a draw of x.

        Returns:
            Tensor, shape ``(n, *event)``.

        Raises:
            ValueError: If ``y`` does not hold one-hot rows.
        """
        if y.ndim != 2 or not _is_known(y).all():
            raise ValueError(f"generate: y must hold one-hot labels, shape (n, classes), got shape {tuple(y.shape)}")
        return draw(self.likelihood(self.prior().sample((len(y),)), y), mean)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Return the probabilities q(y | x) for ``x``, shape ``(N, *event)``, as a tensor ``(N, classes)``."""
        probabilities: Tensor = self.classifier(x).probs
        return probabilities


class SemiSupervisedModel(Program):
    """The Pyro model of M2, ``p(y) p(z) p(x | z, y)``."""

    def __init__(self, prior: Component, label_prior: Component, likelihood: Component, weight: float) -> None:
        super().__init__()
        self.put("prior", prior)
        self.put("label_prior", label_prior)
        self.put("likelihood", likelihood)
        self.classification_weight = weight

    def labels(self, y: Tensor) -> Any:
        """Return the label prior p(y). Check that it is a OneHotCategorical with the event shape of the labels."""
        labels = run_component(
            "label prior", self.get("label_prior"), batch_shape=torch.Size(), event_shape=y.shape[1:]
        )
        return _one_hot("label prior", labels)

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Run the model on data ``x``, shape ``(N, *event)``, and labels ``y``, shape ``(N, classes)``."""
        emit_parameters(self)
        known = _is_known(y)
        with self.data_plate(x):
            labels = self.labels(y)
            unknown = pyro.sample("y", _certain_where(known, labels))
            first = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)[0]
            observed = torch.where(known, y, first)  # an arbitrary class if unknown
            mask: Any = known[..., 0]
            with poutine.mask(mask=mask):
                pyro.sample("label", labels, obs=observed)
                if self.training and self.classification_weight:
                    classifier = self.peers[0].get("classifier")
                    with poutine.scale(scale=self.classification_weight):
                        pyro.sample("classification", classifier(x), obs=observed)
            label = torch.where(known, y, unknown)
            prior = run_component("prior", self.get("prior"), batch_shape=torch.Size())
            z = draw_latent("prior", "z", prior)
            batch_shape = torch.broadcast_shapes(z.shape[:-1], label.shape[:-1])
            likelihood = self.get("likelihood")
            p = run_component("likelihood", likelihood, z, label, batch_shape=batch_shape, event_shape=x.shape[1:])
            pyro.sample("x", p, obs=x)


class SemiSupervisedGuide(Program):
    """The Pyro guide of M2, ``q(y | x) q(z | x, y)``."""

    def __init__(self, posterior: Component, classifier: Component) -> None:
        super().__init__()
        self.put("posterior", posterior)
        self.put("classifier", classifier)

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Run the guide on data ``x``, shape ``(N, *event)``, and labels ``y``, shape ``(N, classes)``."""
        emit_parameters(self)
        known = _is_known(y)
        with self.data_plate(x):
            q = run_component("classifier", self.get("classifier"), x, batch_shape=x.shape[:1], event_shape=y.shape[1:])
            q = _certain_where(known, _one_hot("classifier", q))
            unknown = pyro.sample("y", q, infer={"enumerate": "parallel"})
            label = torch.where(known, y, unknown)
            batch_shape = torch.broadcast_shapes(x.shape[:1], label.shape[:-1])
            pyro.sample("z", run_component("posterior", self.get("posterior"), x, label, batch_shape=batch_shape))


def _one_hot(role: str, p: Any) -> Any:
    if not isinstance(p, torch.distributions.OneHotCategorical):
        raise TypeError(f"the {role} must return a OneHotCategorical, got {type(p).__name__}")
    return p


def _certain_where(known: Tensor, p: Any) -> Any:
    """Return ``p`` with a single possible class, the first one, for each datum with a known label."""
    first = torch.full_like(p.logits, -1e4)  # exp(-1e4) is 0, but unlike minus infinity -1e4 can be multiplied by 0
    first[..., 0] = 0
    return dist.OneHotCategorical(logits=torch.where(known, first, p.logits))


def _is_known(y: Tensor) -> Tensor:
    """Return a mask that is true for rows of one-hot labels and false for rows of zeros, shape ``(N, 1)``."""
    total = y.sum(-1, keepdim=True)
    if is_validation_enabled() and not (((y == 0) | (y == 1)).all() and (total <= 1).all()):
        raise ValueError(
            f"labels must be one-hot rows, or rows of zeros if they are unknown, got a tensor of shape "
            f"{tuple(y.shape)} with values from {y.min():.4g} to {y.max():.4g}. Use torch.nn.functional.one_hot."
        )
    return total > 0
