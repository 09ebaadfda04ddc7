"""Every keyword, import, override and patched name of the neuron engine exists in the installed optimum-neuron: an
upgrade breaks a test, and not a rented instance. Read from source text, since importing it needs torch_xla."""

from __future__ import annotations

import ast

import pytest

from launcher.paths import ROOT
from tests.trainer.contract.calls import Engine, error_messages, expectations

MODULES = sorted((ROOT / "trainer" / "engines" / "neuron").glob("*.py"))


def engine(text: str) -> Engine:
    return Engine("here", ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_what_the_engine_expects_is_there(path):
    assert error_messages(Engine(path.name, ast.parse(path.read_text()))) == []


def test_the_engine_is_read_at_all():
    """Nothing found to check would pass every other test."""
    if not MODULES:
        pytest.skip("trainer/engines/neuron has no modules yet")
    engines = [Engine(path.name, ast.parse(path.read_text())) for path in MODULES]
    names = {name for one in engines for _, name in one.imported.values()}
    assert {"NeuronTrainer", "NeuronTrainingArguments", "NeuronModelForCausalLM", "get_peft_model"} <= names
    assert sum(map(expectations, engines)) > 30


IMPORTS = "from optimum.neuron import NeuronTrainer, NeuronTrainingArguments, NeuronModelForCausalLM\n"

RIGHT = [
    "NeuronTrainingArguments(output_dir='.', zero_1=True, tensor_parallel_size=8, skip_cache_push=True)",
    "class T(NeuronTrainer):\n    def __init__(self, m, a):\n        super().__init__(m, a, data_collator=None)",
    "class T(NeuronTrainer):\n    def setup_training(self, *args, **kwargs): super().setup_training(*args, **kwargs)",
    "from optimum.neuron.peft import get_peft_model\nget_peft_model(m, c, adapter_name='default')",
    "NAME = 'optimum.neuron.trainers.transformers.NeuronTrainer.setup_training'",
    "import optimum.neuron.accelerate.optimizer as o\no.allreduce_sequence_parallel_gradients(x)",
]


@pytest.mark.parametrize("text", RIGHT, ids=lambda text: text[:50])
def test_what_is_there_is_found(text):
    assert error_messages(engine(IMPORTS + text)) == []


WRONG = [
    ("NeuronTrainingArguments(zero_one=True)", "NeuronTrainingArguments takes no zero_one"),
    ("NeuronTrainingArguments(max_length=3)", "NeuronTrainingArguments takes no max_length"),
    ("NeuronTrainer(model=m, eval_data=None)", "NeuronTrainer takes no eval_data"),
    (
        "class T(NeuronTrainer):\n    def __init__(self, m): super().__init__(m, collator=None)",
        "super().__init__ takes no collator",
    ),
    ("class T(NeuronTrainer):\n    def f(self): super().setup_train()", "super().setup_train is not there"),
    (
        "class T(NeuronTrainer):\n    def get_batch_samples(self, epoch_iterator, device, prefetch_size): pass",
        "lacks parameter num_batches",
    ),
    ("from optimum.neuron.peft import get_model", "optimum.neuron.peft has no get_model"),
    ("from optimum.neuron.pefft import get_peft_model", "optimum.neuron.pefft has no get_peft_model"),
    ("NeuronModelForCausalLM.from_checkpoint(m)", "from_checkpoint is not there"),
    ("NAME = 'optimum.neuron.trainers.transformers.NeuronTrainer.set_up_training'", "is not there"),
    ("NAME = 'optimum.neuron.trainers.transformers.Trainer2'", "is not there"),
]


@pytest.mark.parametrize(("text", "piece"), WRONG, ids=lambda value: value[:50])
def test_what_is_not_there_is_told(text, piece):
    (line,) = error_messages(engine(IMPORTS + text))
    assert piece in line


def test_a_models_keywords_are_those_of_the_class_that_loads_it():
    text = "from optimum.neuron.models.training import NeuronModelForCausalLM as M\nM.from_pretrained(p, t, {}=1)"
    assert error_messages(engine(text.format("torch_dtype"))) == []
    assert error_messages(engine(text.format("attn_implementation"))) == []
    assert "takes no tensor_parallel_size" in error_messages(engine(text.format("tensor_parallel_size")))[0]
