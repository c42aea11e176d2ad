"""Measures of codes, shape ``(N, units)``, and of images that are decoded from them, shape ``(N, *event)``."""

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor


def hoyer_sparsity(codes: Tensor) -> Tensor:
    r"""Return the sparsity of each code: 0 if all units are equally active, 1 if a single unit is active.

    .. math:: \frac{\sqrt{d} - \lVert h \rVert_1 / \lVert h \rVert_2}{\sqrt{d} - 1}

    The measure does not depend on the scale of the code. Source: *Non-negative Matrix Factorization with Sparseness
    Constraints* (Hoyer, 2004).
    """
    root = codes.shape[1] ** 0.5
    return (root - codes.norm(p=1, dim=1) / codes.norm(dim=1)) / (root - 1)


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Return the test accuracy of a logistic regression of the labels on the standardized codes."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    probe.fit(train.flatten(1).cpu().numpy(), labels.numpy())
    return float(probe.score(test.flatten(1).cpu().numpy(), test_labels.numpy()))


def precision_and_recall(made: Tensor, real: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Return the precision and the recall of generated images.

    Precision is the fraction of the generated images that lie among real ones, and recall the fraction of the real
    images that lie among generated ones. An image lies among a set if its distance to a member of the set is below the
    distance from that member to its k-th nearest neighbour in the set. Source: *Improved Precision and Recall Metric
    for Assessing Generative Models* (Kynkäänniemi et al., 2019). Distances are taken between pixels.
    """
    made, real = made.flatten(1), real.flatten(1)
    between = torch.cdist(made, real)
    radius_made, radius_real = (torch.cdist(x, x).kthvalue(k + 1, dim=1).values for x in (made, real))
    precision, recall = (between <= radius_real).any(1), (between <= radius_made[:, None]).any(0)
    return float(precision.float().mean()), float(recall.float().mean())


def distances_to_nearest(codes: Tensor, known: Tensor) -> Tensor:
    """Return the distance of each code to the nearest known code, in standard deviations of the known codes' units."""
    scale = known.std(0)
    return torch.cdist(codes / scale, known / scale).min(1).values
