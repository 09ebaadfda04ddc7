"""A SageMaker HyperPod cluster: Slurm, with what conf/cluster/hyperpod.yaml sets (its shared file system, and
srun's --auto-resume=1, which replaces a node with a hardware fault)."""

from __future__ import annotations

from launcher.executors.slurm.submit import execute

__all__ = ["execute"]
