#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0: dense layers of a mixture of experts get no adapter, though they are named.
#
# transformers 5 keeps the experts of a mixture in one parameter. So that adapters which name the experts' layers still find them,
# peft turns gate_proj, up_proj and down_proj among the target modules of such a family into a target parameter of that name, before
# it looks for modules. The first layers of DeepSeek V3 and the shared experts of all its layers are ordinary linear layers of these
# names: they are adapted with one release of peft and transformers (0.17.0 and 4.57.6) and not with these. Nothing is said.
#
# Seen (a DeepSeek V3 of two layers, the first one dense, lora on gate_proj, up_proj and down_proj):
#   layers of these names:           6
#   of which have an adapter:        0
# Exit code 0: still so. 1: they have one, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    peft==0.21.2 transformers==5.24.0 accelerate==1.15.0 torch==2.13.0
cat >"$work/experts.py" <<'PYTHON'
import sys
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

warnings.simplefilter("ignore")
config = DeepseekV3Config(
    hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, vocab_size=50, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
)  # fmt: skip
names = ["gate_proj", "up_proj", "down_proj"]
model = DeepseekV3ForCausalLM(config)
dense = [name for name, module in model.named_modules()
         if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in names]  # fmt: skip
adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM"))
trained = {name.partition(".lora_")[0] for name, parameter in adapted.named_parameters() if parameter.requires_grad}
with_adapter = [name for name in dense if f"base_model.model.{name}" in trained]
print(f"peft {peft.__version__}, transformers {transformers.__version__}")
print(f"layers of these names:           {len(dense)}")
print(f"of which have an adapter:        {len(with_adapter)}")
print("what is trained:", *sorted(trained), sep="\n  ")
sys.exit(0 if dense and not with_adapter and peft.__version__ == "0.21.2" else 1)
PYTHON
cd "$work"
venv/bin/python experts.py 2>/dev/null
