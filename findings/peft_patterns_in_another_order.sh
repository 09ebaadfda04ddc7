#!/usr/bin/env bash
# peft 0.17.0: an adapter whose alpha_pattern (or rank_pattern) has two entries for one layer is another one when read back.
#
# A layer takes the first entry that stands for it, in the order of the dictionary. adapter_config.json is written with sorted
# keys, so that after reading it another entry may be the first. With alpha_pattern the scaling is then another one, without a
# word; with rank_pattern the tensors have another shape than the layers, and loading fails. One entry a layer avoids it.
#
# Seen:
#   scaling of model.layers.0.self_attn.q_proj: 16.0 as trained, 1.0 as read back
#   logits differ by 0.041
#   rank_pattern: RuntimeError: Error(s) in loading state_dict for PeftModelForCausalLM
# Exit code 0: still so. 1: the order is kept, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.17.0 transformers==4.57.6 torch==2.13.0
cat >"$work/patterns.py" <<'PYTHON'
import copy
import sys
import warnings

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
base = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
ids = torch.arange(40)[None]
NAME = "model.layers.0.self_attn.q_proj"
PATTERNS = {"q_proj": 32, "layers.0.self_attn.q_proj": 2}


def adapter(directory, **settings):
    common = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**{**common, **settings})).eval()
    model.save_pretrained(directory, save_embedding_layers=False)
    return model


def read(directory):
    return PeftModel.from_pretrained(copy.deepcopy(base), directory).eval()


print(f"peft {peft.__version__}")
with torch.no_grad():
    trained = adapter("alpha", alpha_pattern=PATTERNS)
    again = read("alpha")
    before, after = (model.get_base_model().get_submodule(NAME).scaling["default"] for model in (trained, again))
    difference = float((trained(ids).logits - again(ids).logits).abs().max())
print(f"scaling of {NAME}: {before} as trained, {after} as read back")
print(f"logits differ by {difference:.2g}")
adapter("rank", rank_pattern=PATTERNS)
try:
    read("rank")
    failed = False
except RuntimeError as error:
    failed = True
    print(f"rank_pattern: RuntimeError: {str(error).splitlines()[0].rstrip(':')}")
sys.exit(0 if before != after and difference > 0 and failed else 1)
PYTHON
cd "$work"
venv/bin/python patterns.py 2>/dev/null
