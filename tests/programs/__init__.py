"""Programs in the style of Pyro's examples, each run through every tool; docs/programs.md shows the outcomes."""
