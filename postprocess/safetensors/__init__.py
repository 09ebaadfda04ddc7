"""Safetensors larger than memory: a model's shards are laid out from names and shapes, then filled tensor by tensor.

The safetensors library writes a dict of tensors that are all in memory. Here a tensor comes from memory one at a time,
or is copied from another file by the kernel and never becomes an object of this process.

Format: 8 bytes of header length (little-endian), a JSON header padded with spaces, the tensors' bytes without gaps.
"""
