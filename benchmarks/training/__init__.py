"""This project against its peers: `python -m benchmarks.training`."""
