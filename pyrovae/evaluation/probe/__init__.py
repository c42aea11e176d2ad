"""Facts about a program, found by at most three runs on a few data before the first draw of an estimate."""
