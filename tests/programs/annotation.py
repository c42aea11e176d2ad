"""Annotation of cells: counts of genes with labels, a library size and a classification factor in the guide."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from tests.programs.autoencoders import together
from tests.programs.case import GUIDE_ENUMERATES, Case, noise

GENES, TYPES = 5, 2


class Annotation(nn.Module):
    """A small scANVI: labels are given, or enumerated in the guide.

    Args:
        alpha: Weight of the classification loss, which enters the training loss as a factor of the guide.
    """

    def __init__(self, alpha: float = 3.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.classifier, self.encoder = nn.Linear(GENES, TYPES), nn.Linear(GENES + TYPES, 2)
        self.size, self.decoder = nn.Linear(GENES, 1), nn.Linear(1 + TYPES, GENES)
        self.inverse_dispersion, self.gate = nn.Parameter(torch.full((GENES,), 1.0)), nn.Parameter(torch.zeros(GENES))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(TYPES) / TYPES), obs=y)
            library = pyro.sample("l", dist.LogNormal(torch.full((1,), 2.0), 0.3).to_event(1))
            mean = library * self.decoder(together(z, y)).softmax(-1)
            total = self.inverse_dispersion.exp()
            logits = mean.log() - self.inverse_dispersion
            counts = dist.ZeroInflatedNegativeBinomial(total, logits=logits, gate_logits=self.gate - 2)
            pyro.sample("x", counts.to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("scanvi", self)
        log_x = x.log1p()
        with pyro.plate("batch", len(x)):
            of_label = dist.OneHotCategorical(logits=self.classifier(log_x))
            if y is None:
                y = pyro.sample("y", of_label, infer={"enumerate": "parallel"})
            elif self.alpha:
                pyro.factor("classification_loss", -self.alpha * of_label.log_prob(y), has_rsample=False)
            pyro.sample("l", dist.LogNormal(2 + 0.1 * self.size(log_x), 0.35).to_event(1))
            loc, log_scale = self.encoder(together(log_x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(0.3 * loc, (0.2 * log_scale).exp()).to_event(1))


def counts() -> tuple[Tensor]:
    return ((noise(3, GENES) + 1.5).exp().floor(),)


def labelled() -> tuple[Tensor, Tensor]:
    return (*counts(), torch.eye(TYPES)[[0, 1, 0]])


class SumOfLabels(Annotation):
    """The same model with the label drawn from its prior, for importance sampling by Pyro."""

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        prior = dist.OneHotCategorical(torch.ones(TYPES) / TYPES)
        with pyro.plate("labels", len(x)):
            y = pyro.sample("y", prior) if y is None else y
        super().guide(x, y)


CASES = (
    Case("annotation, labels given", Annotation, labelled, without_factor=lambda: Annotation(0.0)),
    Case("annotation, labels enumerated", Annotation, counts, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1),
         guide_enumerates=True, without_factor=lambda: SumOfLabels(0.0),
         refused=GUIDE_ENUMERATES),
)  # fmt: skip
