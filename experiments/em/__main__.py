"""Run the three scripts on EM, one after another."""

from dataclasses import dataclass, field

import tyro

from experiments.em import alternating, bayesian, mixture
from experiments.em.alternating import Options as Alternating
from experiments.em.bayesian import Options as Bayesian
from experiments.em.mixture import Options as Mixture


@dataclass
class Options:
    """Options of the three scripts."""

    mixture: Mixture = field(default_factory=Mixture)
    bayesian: Bayesian = field(default_factory=Bayesian)
    alternating: Alternating = field(default_factory=Alternating)


def main(options: Options) -> None:
    """Run the three scripts."""
    mixture.main(options.mixture)
    bayesian.main(options.bayesian)
    alternating.main(options.alternating)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
