"""From the shards that distributed training leaves to one model or adapter directory. See docs/consolidate.md."""
