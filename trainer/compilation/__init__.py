"""Compiling before training: the cache of compiled graphs, the stage that fills it, and what training found in it."""
