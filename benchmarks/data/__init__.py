"""Tokenizing and packing against the tokenizer alone: `python -m benchmarks.data`."""
