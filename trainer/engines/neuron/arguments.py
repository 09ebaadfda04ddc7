"""The configuration in optimum-neuron's terms. Imports what exists on Neuron machines alone."""

from __future__ import annotations

import math

from optimum.neuron import NeuronTrainingArguments

from launcher.config.schema import Config, accumulation_steps


def training_arguments(config: Config) -> NeuronTrainingArguments:
    """The configuration in optimum-neuron's terms. Saving, logging, evaluation and progress are not left to it.

    Making them joins the process group and makes the parallel groups.
    """
    training, parallel = config.training, config.parallelism
    return NeuronTrainingArguments(
        output_dir=".",  # nothing is written there
        max_steps=1,  # until the rows are known
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=accumulation_steps(config),
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=0,  # set with max_steps
        weight_decay=training.weight_decay,
        # The norm is measured where it is limited: without a limit it still is.
        max_grad_norm=training.max_grad_norm or math.inf,
        optim="adamw_torch",
        bf16=training.precision == "bf16",
        zero_1=parallel.zero_1,
        optimizer_save_master_weights_in_ckpt=parallel.zero_1,  # what we do: else each rank warns that it isn't done
        tensor_parallel_size=parallel.tensor_parallel,
        pipeline_parallel_size=parallel.pipeline_parallel,
        pipeline_parallel_num_microbatches=accumulation_steps(config),
        disable_sequence_parallel=not parallel.sequence_parallel,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={},  # None fails (peft 0.17 asks it for use_reentrant)
        # Its own mask is causal alone; several documents in a row need ours.
        recompute_causal_mask=not config.dataset.packing,
        save_strategy="no",
        logging_strategy="no",
        enable_throughput_metrics=False,
        enable_mfu_metrics=False,
        enable_efficiency_metrics=False,
        skip_cache_push=True,  # else training ends with a look at the Hub
        disable_tqdm=True,
        report_to=[],
        log_level="error",
        log_level_replica="error",
    )
