"""Facts about a program, found by at most three runs on a few data before an estimate makes its first draw."""
