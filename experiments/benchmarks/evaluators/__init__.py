"""One contender a file: the same estimate of log p(x) as an expert user of each tool would compute it."""
