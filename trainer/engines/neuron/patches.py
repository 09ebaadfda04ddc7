"""What optimum-neuron 0.4.5 does wrongly without a word, mended. Each mend is of one source text: where that text is
another one, nothing is patched blindly, and the run is refused.

1. With sequence parallelism each tensor-parallel rank sees its part of the sequence, so gradients of parameters that
   all ranks hold must be summed over them. Norms are marked for that, replicated halves of LoRA layers are not:
   ``mark_replicated`` marks them.
2. With ZeRO-1 and fp32 gradient accumulation a hook moves ``grad`` to ``main_grad``, and the sum over the ranks is made
   of ``grad``, which is None by then: ``reduce_sequence_parallel_gradients`` takes the one that is there.
3. The schedule is made for the optimizer that ZeRO-1 then replaces. ZeRO-1 begins with the same parameter groups, but
   accelerate loads its state into it, which makes new ones: the learning rate stays that of the first step, 0 with a
   warm-up. ``set_learning_rates`` tells the optimizer that is used.

4. Granite has embedding and output head whole on every rank. With sequence parallelism each rank gets the gradients of
   all positions for the embedding, and those of its own positions, times the number of ranks, for the head's output.
   ``share_gradients`` divides both, so that gradients of both are summed over the ranks like those of norms.

And what neuronx_distributed 0.15 to 0.17 does wrongly with the two together, where a model has fewer key/value heads
than tensor-parallel ranks, so that several ranks hold a copy of one:

5. optimum-neuron gives a tensor-parallel rank the head of its number modulo the number of heads. neuronx_distributed
   sums the gradients of copies over ranks next to each other on Trainium 2, and on Trainium 1 over numbers of processes
   as though tensor-parallel neighbours were next to each other, which they aren't with 4 ranks: gradients of different
   heads are added. ``head_groups`` follows the weights.
6. The norm of the gradients, by which they are clipped, counts each copy. ``counted_once`` counts one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from launcher.errors import TrntuneError
from launcher.neuron.libraries import VERSION

# Of the functions and classes that the mends replace or rely on.
FINGERPRINTS = {
    "optimum.neuron.accelerate.optimizer.allreduce_sequence_parallel_gradients": "27763cfd2ca484fd",
    "optimum.neuron.accelerate.optimizer.NeuronAcceleratedOptimizer": "4ebca3062ecd1425",
    "optimum.neuron.accelerate.accelerator.NeuronAccelerator._prepare_optimizer_for_zero_1": "cae6f32f201dfb97",
    "optimum.neuron.peft.tuners.lora.layer.NeuronLoraLayer.update_layer": "688b3159b96dcf70",
    "optimum.neuron.peft.tuners.lora.layer.GQAQKVColumnParallelLinear.update_layer": "9b0d8c09c7234dcd",
    "optimum.neuron.models.training.granite.modeling_granite.GraniteForCausalLM.forward": "0db7ebb85ec867af",
    "optimum.neuron.models.training.granite.modeling_granite.GraniteModel.forward": "66c54b39db0186d7",
    "optimum.neuron.models.training.pipeline_utils.create_nxdpp_model": "73c56360ec1d264d",
    "optimum.neuron.trainers.transformers.NeuronTrainer._train": "5eb3f07aaa9ae979",
    "optimum.neuron.trainers.transformers.NeuronTrainer.setup_training": "e5f64add27578c50",
}
# The same of mends 5 and 6: neuronx_distributed's are alike in its public releases 0.15, 0.16 and 0.17.
OF_COPIES = {
    "optimum.neuron.models.training.transformations_utils.GQAQKVColumnParallelLinearSpec": "5bc3ce71a717a2cd",
    "neuronx_distributed.parallel_layers.grads.get_grad_norm": "ed08cea8424f5963",
    "neuronx_distributed.parallel_layers.parallel_state.initialize_kv_group": "05f248fdaa700d6c",
    "neuronx_distributed.parallel_layers.parallel_state.arrange_kv_groups": "70ea62e5ff4ea3d4",
    "neuronx_distributed.optimizer.zero_redundancy_optimizer.NeuronZero1Optimizer": "654fa0369d581932",
}
# And of what pipeline stages rely on (trainer.engines.neuron.pipeline).
OF_STAGES = {
    "optimum.neuron.models.training.llama.modeling_llama.LlamaForCausalLM.forward": "34d45a19aea5ba56",
    "optimum.neuron.models.training.llama.modeling_llama.LlamaModel.forward": "5ea422c855bc36a8",
    "optimum.neuron.models.training.llama.modeling_llama.eager_attention_forward": "858fc67bf174b846",
    "optimum.neuron.models.training.loss_utils.ForCausalLMLoss": "e5ae56ddc3484757",
    "optimum.neuron.trainers.transformers.NeuronTrainer.create_optimizer": "9af5eda7596c0af5",
    "neuronx_distributed.pipeline.model.NxDPPModel._bwd_step_task": "0a8696355408c307",
    "neuronx_distributed.pipeline.model.NxDPPModel._prepare_inputs_and_infer_shape": "d73c734c2a8cc784",
    "neuronx_distributed.pipeline.model.NxDPPModel._process_loss": "cba68604a093c6cf",
}


def fingerprint(source: str) -> str:
    """16 digits of the code, whatever its comments, docstrings and layout."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def named(name: str) -> Any:
    """The object of a dotted name: a module, then attributes in it."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def check(found: Callable[[str], Any], expected: Mapping[str, str]) -> None:
    """Raise TrntuneError unless this is the source that the mends were written for: launcher.neuron.libraries has seen
    that it is the version. ``expected`` is FINGERPRINTS, with OF_COPIES where heads have copies and OF_STAGES where
    there are pipeline stages; ``found`` gives the object of a dotted name.
    """
    for name, digits in expected.items():
        if fingerprint(inspect.getsource(found(name))) != digits:
            library = f"optimum-neuron {VERSION}" if name.startswith("optimum") else "neuronx_distributed 0.15 to 0.17"
            raise TrntuneError(f"{name} is not that of {library}, which this engine mends: install it again")


def mark_replicated(model: nn.Module) -> list[str]:
    """Mark trainable parameters that every tensor-parallel rank holds: their gradients are then summed over the ranks.

    Returns their names.
    """
    replicated = [(name, p) for name, p in model.named_parameters() if p.requires_grad and not is_split(p)]
    for _, parameter in replicated:
        parameter.sequence_parallel_enabled = True  # type: ignore[attr-defined]
    return [name for name, _ in replicated]


def is_split(parameter: torch.Tensor) -> bool:
    """True for a parameter of which each tensor-parallel rank has another part."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def partial_gradients(parameters: Iterable[Any]) -> list[torch.Tensor]:
    """Gradients that are one rank's share of a sum over the tensor-parallel ranks."""
    return gradients(p for p in parameters if getattr(p, "sequence_parallel_enabled", False))


def gradients(parameters: Iterable[Any]) -> list[torch.Tensor]:
    """Of those that have one, wherever it is kept: not copies."""
    found = [p.grad if p.grad is not None else getattr(p, "main_grad", None) for p in parameters]
    return [gradient.data for gradient in found if gradient is not None]


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def scale_gradients(optimizer: torch.optim.Optimizer, factor: torch.Tensor) -> None:
    """Multiply all gradients by ``factor``, a number on their device, in place."""
    for gradient in gradients(_parameters(optimizer)):
        gradient.mul_(factor.to(gradient.dtype))


def share_gradients(modules: Iterable[nn.Module], ranks: int) -> None:
    """Divide what flows back into each of ``modules`` by ``ranks``."""

    def divide(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient / ranks)

    for module in modules:
        module.register_forward_hook(divide)


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    """Give each parameter group the learning rate that the schedule has for it."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def reduce_sequence_parallel_gradients(optimizer: torch.optim.Optimizer, reduce: Callable[[torch.Tensor], Any]) -> None:
    """Sum the gradients of replicated parameters over the tensor-parallel ranks, in place, wherever they are kept."""
    for gradient in partial_gradients(_parameters(optimizer)):
        reduce(gradient)


def head_groups(tensor_groups: Sequence[Sequence[int]], copies: int) -> list[list[int]]:
    """The processes that hold copies of the same key/value heads, for each group of tensor-parallel neighbours.

    [groups x heads, copies]: of 4 neighbours and 2 copies the first and third, and the second and fourth.
    """
    found = []
    for group in tensor_groups:
        heads = len(group) // copies
        found += [sorted(group)[first::heads] for first in range(heads)]
    return found


def copies(name: str, model: nn.Module) -> int:
    """How many tensor-parallel ranks hold what this rank holds of a split parameter: of key and value heads more than
    one, where there are fewer of them than ranks."""
    repeated = name.endswith((".weight_k", ".weight_v"))
    return int(getattr(model.get_submodule(name.rpartition(".")[0]), "kv_size_multiplier", 1)) if repeated else 1


def mark_copies(parts: Iterable[tuple[str, Any, Any]], model: nn.Module) -> None:
    """Say of each tensor that the optimizer updates in how many copies it exists, for ``counted_once``.

    ``parts`` are those of trainer.engines.neuron.state.parts.
    """
    for name, part, _ in parts:
        part.copies = copies(name, model)


def counted_once(norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``norm`` (neuronx_distributed's get_grad_norm), for which ``copies`` of a gradient are one.

    It adds squares over the ranks: each of n copies by the root of n less. Which of them counts in full can't differ
    from rank to rank, since each would need a graph of its own.
    """

    def once(parameters: list[Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        return norm([_share(parameter) for parameter in parameters], *args, **kwargs)

    return once


def _share(parameter: Any) -> Any:
    number = getattr(parameter, "copies", 1)
    if number == 1 or parameter.grad is None:
        return parameter
    return SimpleNamespace(
        grad=parameter.grad.detach() / math.sqrt(number),
        tensor_model_parallel=True,
        device=parameter.device,
        dtype=parameter.dtype,
    )
