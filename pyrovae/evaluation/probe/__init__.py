"""Facts about a program, found by short runs on a few data before an evaluation begins."""
