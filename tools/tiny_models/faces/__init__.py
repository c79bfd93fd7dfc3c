"""A face pack of a megabyte for insightface: trained on painted portraits, for tests only."""
