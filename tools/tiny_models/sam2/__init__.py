"""A SAM2 of a million parameters, trained on painted portraits: for tests without downloads."""
