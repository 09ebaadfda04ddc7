#!/usr/bin/env bash
# peft 0.17.0: with LoraConfig(bias="lora_only") the trained biases are never saved, and nothing says so.
#
# The biases of layers with an adapter are trained. save_pretrained (get_peft_model_state_dict) looks for each of them under
# "<layer>.bias", where it was before the layer got its adapter; by then it is "<layer>.base_layer.bias", so none is found. A
# model that is read back has the base's biases: it is not the one that was trained, and there is no warning. bias="all" saves
# them, since it takes every name with "bias" in it. Saving "<layer>.base_layer.bias" beside the rest helps: peft reads it.
#
# Seen:
#   bias=all: 4 biases trained, 4 in the file; read back, logits differ by 0
#   bias=lora_only: 4 biases trained, 0 in the file; read back, logits differ by 0.57
# Exit code 0: still so. 1: they are saved, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.17.0 transformers==4.57.6 torch==2.13.0
cat >"$work/biases.py" <<'PYTHON'
import copy
import sys
import warnings

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
base = LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=True)).eval()
ids = torch.arange(40)[None]


def saved_and_difference(bias):
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias=bias, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base), settings).eval()
    layers = ("q_proj", "v_proj")
    trained = [p for n, p in model.named_parameters() if p.requires_grad and "bias" in n and any(x in n for x in layers)]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(1.0)
        expected = model(ids).logits
        model.save_pretrained(bias, save_embedding_layers=False)
        file = load_file(f"{bias}/adapter_model.safetensors")
        found = PeftModel.from_pretrained(copy.deepcopy(base), bias).eval()(ids).logits
    saved = sum(name.endswith("bias") and any(layer in name for layer in layers) for name in file)
    difference = float((found - expected).abs().max())
    print(f"bias={bias}: {len(trained)} biases trained, {saved} in the file; read back, logits differ by {difference:.2g}")
    return saved, difference


print(f"peft {peft.__version__}")
everything, only = saved_and_difference("all"), saved_and_difference("lora_only")
sys.exit(0 if everything[1] == 0 and only[0] == 0 and only[1] > 0 else 1)
PYTHON
cd "$work"
venv/bin/python biases.py 2>/dev/null
