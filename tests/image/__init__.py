"""A package, so that its engine ends when its last test does, and not with all tests: it holds some 20 GB."""
