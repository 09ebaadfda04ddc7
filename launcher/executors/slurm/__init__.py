"""Runs on Slurm: one job a stage, submitted by submitit and not waited for. docs/slurm.md has the failure model."""
