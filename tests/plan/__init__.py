"""What the plan says, against the libraries and against real runs: these import torch, tests/launcher does not."""
