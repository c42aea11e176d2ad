"""Runs the experiment from the command line."""

import tyro

import experiments.blurriness as experiment

if __name__ == "__main__":
    experiment.main(tyro.cli(experiment.Options, description=experiment.__doc__))
