"""The readers of what others may have written, to be fed with mutated files."""
