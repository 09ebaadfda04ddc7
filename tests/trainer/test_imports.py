"""What the training stage imports."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from launcher.paths import ROOT

UNUSED = {"sklearn", "scipy", "datasets", "mlflow", "trl", "tensorflow", "matplotlib", "bitsandbytes", "boto3"}
ENTRIES = {
    "training": "trainer.train, trainer.engines.torch.engine, transformers.trainer, transformers.generation",
    "choosing attention": "trainer.families.choose",
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_process_imports_no_package_that_it_does_not_use(entry, tmp_path):
    code = f"import sys, {ENTRIES[entry]}; loaded = {UNUSED} & set(sys.modules); assert not loaded, loaded"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bitsandbytes_is_imported_for_a_packed_base_alone(tmp_path):
    """It is installed here, and brings half of what torch can compile with."""
    code = (
        "import sys\n"
        "import trainer.lean_peft\n"
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "from transformers.utils import is_bitsandbytes_available\n"
        "sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)\n"
        "model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), LoraConfig(target_modules=['q_proj']))\n"
        "assert model.print_trainable_parameters() is None\n"
        "assert 'bitsandbytes' not in sys.modules\n"
        "from peft.tuners.lora import model as lora_model\n"
        "assert not lora_model.is_bnb_available()\n"
        "assert is_bitsandbytes_available()\n"
        "import bitsandbytes\n"
        "assert lora_model.is_bnb_available() and lora_model.is_bnb_4bit_available()\n"
        "from peft.tuners.lora.bnb import Linear4bit\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
