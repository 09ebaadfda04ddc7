"""A base in 4 bit under an adapter (QLoRA): which of its weights are packed, how large they are, what it needs.

Dettmers et al. 2023 (arXiv 2305.14314): frozen linear layers in 4-bit NormalFloat, their scales quantized once more.
bitsandbytes packs and multiplies them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.architecture.adapters import Modules, saved_modules
from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import Config, LoraConfig
from launcher.run_dir.provenance import installed

KEY = "lora.quantize_base"
BYTES_PER_WEIGHT = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""4 bits; a scale of 8 bits for 64 weights; one of fp32 for 256 scales (bitsandbytes' blocks)"""
# 0.49 and 0.50 pack the weights of a CPU with AVX512-BF16 in another way when the model first evaluates, and give no
# gradient after that: the losses looked right, the first layers weren't trained (measured with 0.49.2 and 0.50.2).
_TESTED = (46, 48)
_INSTALL = 'pip install -e ".[qlora]"'


def is_quantized(config: Config) -> bool:
    """Whether the base of a run is packed."""
    return config.method.name == "lora" and config.lora.quantize_base is not None


def packed(modules: Modules, lora: LoraConfig) -> list[str]:
    """Full names of the linear layers whose weights are packed: all but those that modules_to_save trains, which keep
    their precision."""
    saved = set(saved_modules(lora, modules))
    return [name for name in modules.linear if name not in saved]


def check_quantized(config: Config) -> Iterator[Diagnostic]:
    """A packed base needs the torch engine and a bitsandbytes that was seen to train."""
    value = config.lora.quantize_base
    if not is_quantized(config):
        return
    if config.accelerator.device == "neuron" or config.accelerator.engine != "torch":
        why = f"bitsandbytes has no kernels for {config.accelerator.device}"
        yield Diagnostic(KEY, value, why, "leave it out, or take accelerator=cuda")
    elif fault := package_fault():
        yield Diagnostic(KEY, value, fault, _INSTALL)
    if config.lora.init_lora_weights == "orthogonal":
        why = "peft can't begin so on packed weights"  # it gives the matrices the weight's dtype, which is uint8
        yield Diagnostic("lora.init_lora_weights", "orthogonal", why, "take one of true, gaussian")


def package_fault() -> str | None:
    """Why the installed bitsandbytes can't serve; None where it can."""
    version = installed("bitsandbytes")
    if version is None:
        return "needs bitsandbytes, which is not installed"
    parts = re.match(r"0\.(\d+)\.", version)
    if parts is None or not _TESTED[0] <= int(parts[1]) <= _TESTED[1]:
        return f"bitsandbytes {version} was not seen to train here, 0.{_TESTED[0]} to 0.{_TESTED[1]} were"
    return None
