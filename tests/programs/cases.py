"""All rows of the matrix."""

from tests.programs import annotation, autoencoders, guides, hierarchies, mixtures, scenes, sequences, topics

MODULES = autoencoders, annotation, sequences, scenes, topics, mixtures, hierarchies, guides
CASES = {case.name: case for module in MODULES for case in module.CASES}
