"""Topic models: ProdLDA on counts of words, and LDA on the words themselves."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from scipy import integrate, stats
from torch import Tensor, nn

from tests.programs.case import PER_DATUM, Case, noise, refused
from tests.programs.reference import normal_grid

VOCABULARY, WORDS = 6, 4


class ProdLDA(nn.Module):
    """Pyro's ProdLDA with two topics and batch normalization in the decoder, after training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(VOCABULARY, 4)
        self.beta, self.normalization = nn.Linear(2, VOCABULARY, bias=False), nn.BatchNorm1d(VOCABULARY, affine=False)
        self.eval()

    def model(self, docs: Tensor) -> None:
        pyro.module("decoder", self.beta)
        with pyro.plate("documents", docs.shape[0]):
            loc = docs.new_zeros((docs.shape[0], 2))
            log_theta = pyro.sample("logtheta", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            probs = self.normalization(self.beta(log_theta.softmax(-1))).softmax(-1)
            total = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total, probs), obs=docs)

    def guide(self, docs: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            loc, log_scale = self.encoder(docs.log1p()).chunk(2, -1)
            pyro.sample("logtheta", dist.Normal(0.2 * loc, (0.1 * log_scale).exp()).to_event(1))


class LDA(nn.Module):
    """LDA on integer words with learned topics; the topic of a word is summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.topics = nn.Parameter(noise(2, VOCABULARY))
        self.predictor = nn.Linear(VOCABULARY, 2)

    def topic_words(self) -> Tensor:
        return self.topics.softmax(-1)

    def model(self, words: Tensor) -> None:
        pyro.module("lda", self)
        topic_words = self.topic_words()
        with pyro.plate("documents", len(words), dim=-2):
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(torch.full((2,), 1.5)))
            with pyro.plate("words", words.shape[1], dim=-1):
                infer = {"enumerate": "parallel"}
                word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics), infer=infer)
                pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=words)

    def guide(self, words: Tensor) -> None:
        pyro.module("lda", self)
        counts = nn.functional.one_hot(words, VOCABULARY).float().sum(-2)
        concentration = 1.5 + nn.functional.softplus(self.predictor(counts))
        with pyro.plate("documents", len(words), dim=-2):
            pyro.sample("doc_topics", dist.Dirichlet(concentration.unsqueeze(-2)))


class GlobalLDA(LDA):
    """Pyro's LDA, whose topics are latents that all documents share."""

    def __init__(self) -> None:
        super().__init__()
        self.posterior = nn.Parameter(torch.zeros(2, VOCABULARY))

    def topic_words(self) -> Tensor:
        with pyro.plate("topics", 2):
            return pyro.sample("topic_words", dist.Dirichlet(torch.ones(VOCABULARY)))

    def guide(self, words: Tensor) -> None:
        with pyro.plate("topics", 2):
            pyro.sample("topic_words", dist.Dirichlet(self.posterior.exp() + 1))
        super().guide(words)


def documents() -> tuple[Tensor]:
    return ((noise(3, VOCABULARY) + 1).clamp(0).round(),)


def words() -> tuple[Tensor]:
    return (torch.randint(0, VOCABULARY, (3, WORDS), generator=torch.Generator().manual_seed(0)),)


def exact_lda() -> np.ndarray:
    """Return log p(words) of each document, by quadrature over its share of the first topic."""
    first, second = LDA().topic_words().detach().double().numpy()

    def density(share: float, document: np.ndarray) -> float:
        return stats.beta.pdf(share, 1.5, 1.5) * np.prod(share * first[document] + (1 - share) * second[document])

    return np.log([integrate.quad(density, 0, 1, args=(document,))[0] for document in words()[0].numpy()])


def two_normals() -> np.ndarray:
    """Return log p(counts) of each document, an integral over the difference of its two logits, which is normal."""
    grid, log_measure = normal_grid()
    pyro.set_rng_seed(0)
    module = ProdLDA()
    theta = torch.stack([2**0.5 * grid, torch.zeros_like(grid)], -1).softmax(-1)
    log_probs = module.normalization(module.beta(theta)).log_softmax(-1).detach()
    log_prior = dist.Normal(0.0, 1.0).log_prob(grid)
    docs = documents()[0]
    coefficient = docs.sum(-1).add(1).lgamma() - docs.add(1).lgamma().sum(-1)
    log_joint = coefficient[:, None] + docs @ log_probs.T + log_prior + log_measure
    return log_joint.double().logsumexp(-1).numpy()


CASES = (
    Case("ProdLDA", ProdLDA, documents, exact=two_normals,
         refused=refused("scored together", "IWAE") | refused("one draw a run", "rqmc")),
    Case("LDA, integer words", LDA, words, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=2), exact=exact_lda,
         enumerated=True, refused=refused("without inverse", "rqmc")),
    Case("LDA, global topics", GlobalLDA, words, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=2), enumerated=True,
         refused=refused("shared latent", *PER_DATUM)),
)  # fmt: skip
