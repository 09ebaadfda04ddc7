"""What the torch engine splits over tensor_parallel processes, and what is refused before anything is created."""

from __future__ import annotations

import pytest

from launcher.checks.validate import problems
from launcher.jobs.job import job_of
from tests.launcher.conftest import single

TP2 = ("experiment=tiny", "parallelism=tp2")


@pytest.mark.parametrize("layout", ["tp2", "tp2_fsdp2"])
@pytest.mark.parametrize(
    "method",
    [("method=full", "training.compile=layers"), ("lora.target_modules=[all-linear]", "lora.dropout=0.1")],
    ids=str,
)
def test_llama_is_split(cwd, layout, method):
    config = single("experiment=tiny", "training.global_batch_size=8", f"parallelism={layout}", *method).config
    assert problems(config) == []
    parallel = config.parallelism
    assert job_of("train", config).processes == parallel.data_parallel * parallel.tensor_parallel


@pytest.mark.parametrize(
    ("arguments", "key", "piece"),
    [
        (("parallelism.sharding=ddp",), "parallelism.sharding", "sharding=fsdp alone"),
        (("parallelism.sequence_parallel=false",), "parallelism.sequence_parallel", "sequence_parallel=true alone"),
        (("parallelism.tensor_parallel=1",), "parallelism.sequence_parallel", "nobody to share positions with"),
        (("parallelism.zero_1=true",), "parallelism.zero_1", "its engine is torch"),
        (("parallelism.pipeline_parallel=2",), "parallelism.pipeline_parallel", "its engine is torch"),
        (("parallelism.tensor_parallel=4",), "parallelism.tensor_parallel", "2 key/value heads, which it must divide"),
        (("model.architecture.intermediate_size=129",), "parallelism.tensor_parallel", "129 columns in its MLP"),
        (("lora=qlora",), "lora.quantize_base", "take parallelism=ddp2"),
        (("model.architecture.vocab_size=265",), "parallelism.tensor_parallel", "265 rows of the embedding"),
        (("model.architecture.family=granite",), "parallelism.tensor_parallel", "layers of granite aren't known"),
        (("training.max_length=127",), "training.max_length", "nearest is 126"),
        (("lora.use_dora=true",), "lora.use_dora", "isn't split over"),
        (("lora.modules_to_save=[model.norm]",), "lora.modules_to_save", "isn't split over"),
        (("lora.trainable_token_indices=[1]",), "lora.trainable_token_indices", "isn't split over"),
        (("lora.bias=all",), "lora.bias", "isn't split over"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_what_isnt_split_is_refused_by_name(cwd, arguments, key, piece):
    config = single(*TP2, "training.global_batch_size=8", *arguments).config
    assert any(problem.key == key and piece in str(problem) for problem in problems(config)), problems(config)


def test_a_family_that_nothing_is_known_of_is_refused(cwd):
    config = single(*TP2).config
    config.model.architecture = None
    assert any("aren't known well enough" in str(problem) for problem in problems(config))
