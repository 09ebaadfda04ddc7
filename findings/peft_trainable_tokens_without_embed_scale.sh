#!/usr/bin/env bash
# peft 0.17.0: trainable_token_indices changes models whose embedding does more than look rows up, before any training.
#
# The layer that trains single rows calls torch's embedding function with the rows put in, not the embedding module. Gemma 3's
# (and MBart's, XGLM's, TrOCR's) multiplies what it looks up by sqrt(hidden_size): with peft's layer the factor is gone for
# every token, trained or not, and the untrained adapter already gives other logits than the base. Nothing says so. Llama's
# embedding is torch's own, where it works. modules_to_save=["embed_tokens"] trains the embedding as a module, factor included.
#
# Seen:
#   Llama: logits of base and untrained adapter differ by 0
#   Gemma 3: logits of base and untrained adapter differ by 0.073
# Exit code 0: still so. 1: the untrained adapter gives the base's logits, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.17.0 transformers==4.57.6 torch==2.13.0
cat >"$work/tokens.py" <<'PYTHON'
import copy
import sys
import warnings

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
ids = torch.arange(40)[None]


def difference(name, make):
    torch.manual_seed(0)
    base = make().eval()
    settings = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3], task_type="CAUSAL_LM")
    with torch.no_grad():
        adapted = get_peft_model(copy.deepcopy(base), settings).eval()(ids).logits
        found = float((adapted - base(ids).logits).abs().max())
    print(f"{name}: logits of base and untrained adapter differ by {found:.2g}")
    return found


print(f"peft {peft.__version__}")
llama = difference("Llama", lambda: LlamaForCausalLM(LlamaConfig(**sizes)))
gemma = difference("Gemma 3", lambda: Gemma3ForCausalLM(Gemma3TextConfig(**sizes, num_key_value_heads=2, head_dim=16)))
sys.exit(0 if llama == 0 and gemma > 0 else 1)
PYTHON
cd "$work"
venv/bin/python tokens.py 2>/dev/null
