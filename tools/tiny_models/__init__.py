"""Models of real formats, small enough to keep in the repository, for the tests."""
