"""Published tables, reproduced: a script a paper, ``python -m experiments.reproduce.iwae`` and so on."""
