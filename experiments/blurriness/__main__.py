"""Run the experiment from the command line."""

import tyro

import experiments.blurriness
from experiments.blurriness.experiment import main
from experiments.blurriness.setting import Options

if __name__ == "__main__":
    main(tyro.cli(Options, description=experiments.blurriness.__doc__))
