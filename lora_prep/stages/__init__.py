"""The stages: each turns files into files, and none knows where or how it is run."""
