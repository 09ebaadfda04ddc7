#!/usr/bin/env bash
# peft 0.17.0 with bitsandbytes 0.48.2: init_lora_weights="orthogonal" can't be had on a 4-bit base, and the error speaks of neither.
#
# The start makes its matrices in the dtype of the base layer's weight. Packed, that is uint8: the numbers of a QR decomposition
# become 0, and torch refuses to train whole numbers ("Only Tensors of floating point and complex dtype can require gradients").
# gaussian and True take the dtype of the adapter, and work.
#
# Seen:
#   init_lora_weights=gaussian: adapter of torch.float32
#   init_lora_weights=orthogonal: RuntimeError: Only Tensors of floating point and complex dtype can require gradients
# Exit code 0: still so. 1: it works, fails otherwise, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 bitsandbytes==0.48.2 peft==0.17.0 transformers==4.57.6 accelerate==1.8.1
cat >"$work/start.py" <<'PYTHON'
import sys
import warnings

import bitsandbytes
import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained("base")


def start(name):
    packing = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = LlamaForCausalLM.from_pretrained("base", quantization_config=packing, dtype=torch.float32)
    try:
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=name))
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"adapter of {next(p.dtype for n, p in model.named_parameters() if 'lora_A' in n)}"


print(f"peft {peft.__version__}, bitsandbytes {bitsandbytes.__version__}")
seen = {name: start(name) for name in ("gaussian", "orthogonal")}
for name, result in seen.items():
    print(f"init_lora_weights={name}: {result}")
works = seen["gaussian"] == "adapter of torch.float32"
sys.exit(0 if works and "Only Tensors of floating point" in seen["orthogonal"] else 1)
PYTHON
cd "$work"
venv/bin/python start.py 2>/dev/null
