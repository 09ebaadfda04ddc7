"""The fixtures of models and of an empty cache, as in tests/trainer/models."""

from tests.trainer.models.conftest import empty_cache, smollm2

__all__ = ["empty_cache", "smollm2"]
