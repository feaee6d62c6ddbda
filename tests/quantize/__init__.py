"""A package, so that what holds modelopt and torch in memory ends when its last test does, and not with all tests."""
