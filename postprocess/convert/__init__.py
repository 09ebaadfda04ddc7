"""A base that lies there as pickles, or as shards whose index is lost, written anew as safetensors."""

from postprocess.convert.run import convert

__all__ = ["convert"]
