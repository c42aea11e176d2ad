"""Run the two scripts on gradient estimators, one after the other."""

from dataclasses import dataclass, field

import tyro

from experiments.gradient_estimators import learning, moments
from experiments.gradient_estimators.learning import Options as Learning
from experiments.gradient_estimators.moments import Options as Moments


@dataclass
class Options:
    """Options of the two scripts."""

    moments: Moments = field(default_factory=Moments)
    learning: Learning = field(default_factory=Learning)


def main(options: Options) -> None:
    """Run the two scripts."""
    moments.main(options.moments)
    learning.main(options.learning)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
