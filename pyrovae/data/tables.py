"""Data sets in the form of tables: properties of cars, and simulated counts of transcripts in single cells."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pyrovae.arguments import check_whole
from pyrovae.data.embedded import ship
from pyrovae.data.splits import Splits, generator, make_splits, shuffled

Kind = Literal["real", "binary", "categorical", "count"]


@dataclass(frozen=True, repr=False)
class Table(Splits):
    """A table, divided into training, validation and test data. To unpack it, write ``train, valid, test = table``.

    Attributes:
        name: Name of the data set.
        train: Training data, shape ``(N, columns)``; a missing value is NaN.
        valid: Validation data, shape ``(M, columns)``.
        test: Test data, shape ``(L, columns)``.
        binarization: ``"none"``.
        labels: Labels of the three splits, or None.
        columns: Dictionary from the name of each column, in order, to its kind: ``"real"``, ``"binary"``,
            ``"categorical"`` or ``"count"``. The values of a categorical column are the codes 0, 1, ...

    Example:
        >>> import pyrovae as pv
        >>> pv.data.auto_mpg().columns["year"]
        'count'
    """

    columns: dict[str, Kind] = field(default_factory=dict)


def auto_mpg(*, seed: int = 0) -> Table:
    """Load the data set Auto MPG from mlxtend: 392 cars, described by real, categorical and count columns.

    The real columns are ``mpg`` (miles per gallon), ``displacement`` (cubic inches), ``horsepower``, ``weight``
    (pounds) and ``acceleration`` (seconds to 60 mph). ``year`` is a count, the number of years since 1970.
    ``cylinders`` (3, 4, 5, 6, 8) and ``origin`` (America, Europe, Japan) are categorical, with the codes 0, 1, ... in
    this order. Real columns are not standardized; standardize them by their means and standard deviations in the
    training data.

    Args:
        seed: Seed of the split.

    Returns:
        A :class:`Table` whose tensors have shape ``(N, 8)``. The labels are the origins.

    Raises:
        ModuleNotFoundError: If mlxtend is not installed.
        ValueError: If the seed is not between 0 and 2^32 - 1.

    Source:
        UCI Auto MPG (Quinlan, 1993); mlxtend omits six cars of unknown horsepower. There is no standard split. This
        split is random: 272 cars for training, 40 for validation, 80 for testing.

    Example:
        >>> import pyrovae as pv
        >>> cars = pv.data.auto_mpg()
        >>> cars.train.shape, [name for name, kind in cars.columns.items() if kind == "categorical"]
        (torch.Size([272, 8]), ['cylinders', 'origin'])
    """
    x, mpg = ship("mlxtend.data", "mlxtend").autompg_data()
    cylinders, displacement, horsepower, weight, acceleration, year, origin = x.T[:7]
    columns: dict[str, tuple[Kind, np.ndarray]] = {
        "mpg": ("real", mpg),
        "displacement": ("real", displacement),
        "horsepower": ("real", horsepower),
        "weight": ("real", weight),
        "acceleration": ("real", acceleration),
        "year": ("count", year - 70),
        "cylinders": ("categorical", np.searchsorted(np.unique(cylinders), cylinders)),
        "origin": ("categorical", origin - 1),
    }
    table = np.stack([values for _, values in columns.values()], axis=1)
    rows = shuffled(len(table), (272, 312), seed)
    (train, valid, test), (first, second, third) = ([part[chosen] for chosen in rows] for part in (table, origin - 1))
    split = make_splits("auto_mpg", (train, valid, test), "none", seed, (first, second, third))
    return Table(**vars(split), columns={name: kind for name, (kind, _) in columns.items()})


def simulated_cells(*, cells: int = 2000, genes: int = 200, types: int = 5, seed: int = 0) -> Splits:
    """Simulate overdispersed counts of transcripts in single cells that differ in library size.

    A cell of type t and library size l has negative binomial counts with means m = ``l * profile[t]`` and dispersion 2
    (variance m + m^2 / 2). The profile of a type holds a relative mean for each gene, and sums to one. To make it,
    about a tenth of the genes of a common profile are changed at random. Library sizes are log-normal: their median is
    1,000, and their logarithm has a standard deviation of 0.5.

    Args:
        cells: Number of cells, at least 10.
        genes: Number of genes, at least 10.
        types: Number of cell types, at least 1.
        seed: Seed of the simulation.

    Returns:
        Splits whose tensors have shape ``(N, genes)``: 80% of the cells for training, 10% for validation, 10% for
        testing. Labels are the cell types.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is out of range.

    Source:
        The generative model follows *Deep generative modeling for single-cell transcriptomics* (Lopez et al., 2018).

    Example:
        >>> import pyrovae as pv
        >>> counts = pv.data.simulated_cells()
        >>> counts.train.shape, bool((counts.train == counts.train.round()).all())
        (torch.Size([1600, 200]), True)
    """
    check_whole(cells=cells, genes=genes, types=types)
    if cells < 10 or genes < 10 or types < 1:
        raise ValueError(
            f"cells and genes must be at least 10 and types at least 1, got cells={cells}, genes={genes}, "
            f"types={types}."
        )
    random = generator(seed)
    profiles = np.tile(random.gamma(0.5, size=genes) + 1e-3, (types, 1))
    markers = random.uniform(size=profiles.shape) < 0.1
    profiles[markers] *= np.exp(random.normal(0.0, 2.0, size=markers.sum()))
    profiles /= profiles.sum(1, keepdims=True)
    label = random.randint(types, size=cells)
    library = random.lognormal(np.log(1000.0), 0.5, size=(cells, 1))
    counts = random.poisson(random.gamma(2.0, library * profiles[label] / 2.0))
    cuts = [cells * 8 // 10, cells * 9 // 10]
    train, valid, test = np.split(counts, cuts)
    train_type, valid_type, test_type = np.split(label, cuts)
    return make_splits("simulated_cells", (train, valid, test), "none", seed, (train_type, valid_type, test_type))
