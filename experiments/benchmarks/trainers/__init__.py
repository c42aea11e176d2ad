"""One contender a file: the same training step as an expert user of each tool would write it."""
