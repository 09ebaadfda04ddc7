"""What the torch engine can't train on TorchNeuron yet, or would train wrongly."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.checks.diagnostic import Check, Diagnostic
from launcher.config.schema import Config
from launcher.jobs.variables import COMPILE
from launcher.torch_neuron.variables import DERIVED, cache_directory

KERNEL_BLOCK = 512
"""Positions of which a row must be a multiple for the attention kernel; else attention is plain products, 6.4 times
slower at 4,096 positions (users' measurements on trn2, betas before 2.33)."""


def check_settings(config: Config) -> Iterator[Diagnostic]:
    """accelerator.torch_neuron is there alone, and holds what the tools can read."""
    accelerator = config.accelerator
    settings, key = accelerator.torch_neuron, "accelerator.torch_neuron"
    if settings is None:
        why = "engine torch on device neuron needs it"
        yield Diagnostic(key, None, why, "take accelerator=trn2_48xlarge_native or trn2_3xlarge_native")
        return
    if accelerator.neuron is not None:
        yield Diagnostic("accelerator.neuron", "{...}", "is read by engine neuron alone", "leave it out")
    directory = cache_directory(config)
    if "://" in directory or not directory.startswith("/"):
        why = "is no absolute path"
        yield Diagnostic(f"{key}.cache_dir", directory, why, "give a directory such as /fsx/trntune/torch-neuron")
    for flag in settings.compiler_flags:
        if re.match(r"--(cache_dir|no[_-]cache)\b", flag):
            why = "neuronx-cc refuses it here (NCC_EARG002)"
            yield Diagnostic(f"{key}.compiler_flags", flag, why, f"use {key}.cache_dir")
        elif not flag.startswith("-"):
            yield Diagnostic(f"{key}.compiler_flags", flag, "is not -O1, --name or --name=value", "write it so")


def check_rows(config: Config) -> Iterator[Diagnostic]:
    """Rows have one shape that the device's attention kernel takes, and hold one sample each."""
    length = config.training.max_length
    if length % KERNEL_BLOCK:
        nearest = max(1, round(length / KERNEL_BLOCK)) * KERNEL_BLOCK
        why = f"TorchNeuron's attention kernel takes rows of multiples of {KERNEL_BLOCK} positions alone"
        yield Diagnostic("training.max_length", length, why, f"nearest is {nearest}")
    if config.dataset.packing:
        why = (
            "samples of a row aren't kept apart exactly on TorchNeuron yet: its attention kernel takes no mask, and "
            "attention by documents has other shapes for each row"
        )
        yield Diagnostic("dataset.packing", "true", why, "take dataset.packing=false")


def check_stages(config: Config) -> Iterator[Diagnostic]:
    """TorchNeuron compiles as it trains."""
    if COMPILE in config.stages:
        why = "TorchNeuron has no stage compile: it compiles what it meets, and finds it in the cache the next time"
        yield Diagnostic("stages", f"[{','.join(config.stages)}]", why, "leave compile out")


_CHECKS: tuple[Check, ...] = (check_settings, check_rows, check_stages)


def check_torch_neuron(config: Config) -> Iterator[Diagnostic]:
    """All of the above."""
    for check in _CHECKS:
        yield from check(config)


def check_variable(key: str, setting: str) -> Iterator[Diagnostic]:
    """A NAME=value of a list of variables takes the place of no key."""
    name = setting.partition("=")[0]
    if name in DERIVED:
        why = f"{name} is made from accelerator.torch_neuron"
        yield Diagnostic(key, setting, why, "set accelerator.torch_neuron.* instead")
