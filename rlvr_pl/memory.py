"""What a training run holds in a device's memory, before it has one.

Weights, gradients, moments and the cache are counted. What a forward and a backward pass, a prefill and a decode step
hold besides is found by running this project's own code for them on tensors that have shapes and no data, and noting
what is alive: nothing has to be kept in step with the code by hand. Of a deep policy two shallow ones of its width are
run, since layers are alike and each adds what the last one did.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlvr_pl.lora import LoRA, add_adapter
from rlvr_pl.pretrained import checkpoint_activations
from rlvr_pl.rollout.decoder import Decoder
from rlvr_pl.rollout.group_cache import GroupCache
from rlvr_pl.rollout.lean import PREFILL_TOKENS, whole_blocks
from rlvr_pl.rollout.sampling import choose_tokens
from rlvr_pl.rollout.weights import DecoderWeights
from rlvr_pl.scoring import PackedGroups, Sequences, score, use_lean_layers
from rlvr_pl.scoring.attention import PACKED_GROUPS

ACTIVATIONS, CACHE, ENGINE = "activations and logits", "cache of keys and values", "weights' copy for decoding"
# Parts of an update that no setting makes smaller but an adapter.
WEIGHTS, MOMENTS, REFERENCE, GRADIENTS = "weights", "AdamW's moments", "reference policy", "gradients"
STANDING = (WEIGHTS, MOMENTS, REFERENCE, GRADIENTS)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part, in the two phases of a training step."""

    rollout: dict[str, int]
    update: dict[str, int]

    @property
    def peak(self) -> int:
        return max(sum(self.rollout.values()), sum(self.update.values()))


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that operators have made and that are alive, and the most that were so."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size

    def restart(self) -> int:
        """Forget the peak; return what is alive now."""
        self.peak = self.bytes
        return self.bytes


def estimate_memory(
    config: PretrainedConfig,
    *,
    precision: str,
    prompt_tokens: int,
    completion_tokens: int,
    group_size: int,
    rollout_slots: int,
    micro_batch_tokens: int,
    gradient_checkpointing: bool,
    reference: bool,
    release_rollout_memory: bool,
    lora: LoRA | None = None,
    on_cpu: bool = False,
) -> MemoryEstimate:
    """Estimate the memory of a training run with AdamW on one device.

    Not in it: the device's own context and libraries (about 1 GB on CUDA), what its allocator loses between tensors,
    and the memory that captured decode steps share. Under bf16-true a float32 copy of the head is in it, which a CPU
    makes and CUDA does not.

    Args:
        config: of a policy that the decoder covers.
        precision: ``trainer.precision``: 32-true, bf16-mixed or bf16-true.
        prompt_tokens, completion_tokens: of the longest ones, of which a micro-batch is taken to consist.
        group_size, rollout_slots, micro_batch_tokens, gradient_checkpointing, release_rollout_memory: as the module's.
        reference: whether there is a reference policy.
        lora: the adapters that learn in the weights' place, whose reference policy takes nothing.
        on_cpu: whether layers are lean and the engine keeps the prompts of groups in flight beside the completions, as
            on a CPU. Prompts are taken to be as many as fill the slots; where members end one by one there are more.
    """

    def of(layers: int) -> MemoryEstimate:
        mixed = precision == "bf16-mixed"
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
        with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as memory:
            policy = AutoModelForCausalLM.from_config(_with_layers(config, layers), dtype=dtype).train()
            if lora is not None:
                add_adapter(policy, lora, seed=0)
            weights = _bytes(policy.parameters())
            learning = _bytes(p for p in policy.parameters() if p.requires_grad)
            standing = {WEIGHTS: weights, MOMENTS: 2 * learning}
            if reference and lora is None:
                standing[REFERENCE] = weights
            groups = -(-rollout_slots // group_size) if on_cpu and group_size > 1 else 0
            engine, at_work = _rollout(
                policy,
                torch.bfloat16 if mixed else dtype,
                rollout_slots,
                prompt_tokens + completion_tokens,
                (groups, prompt_tokens),
                memory,
            )
            if gradient_checkpointing:
                checkpoint_activations(policy)
            policy.set_attn_implementation(PACKED_GROUPS)
            if on_cpu:
                use_lean_layers(policy)
            micro_batch = _micro_batch(group_size, prompt_tokens, completion_tokens, micro_batch_tokens)
            update = _update(policy, mixed, micro_batch, memory)
        kept = {} if release_rollout_memory else engine
        return MemoryEstimate(
            rollout={**standing, **engine, "prefill, decode step, sampling": at_work},
            update={**standing, **kept, GRADIENTS: learning, ACTIVATIONS: update - learning},
        )

    few, more = _LAYERS_RUN
    layers = config.num_hidden_layers
    return of(layers) if layers <= more else _continued(of(few), of(more), (layers - more) / (more - few))


_LAYERS_RUN = 2, 3  # the first differs from the others: nothing is kept of a layer before it


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same policy, as deep as that."""
    changed = copy.deepcopy(config)
    changed.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        changed.layer_types = config.layer_types[:layers]
    return changed


def _continued(low: MemoryEstimate, high: MemoryEstimate, times: float) -> MemoryEstimate:
    """Add to ``high`` so many times what it has beyond ``low``."""

    def of(less: dict[str, int], more: dict[str, int]) -> dict[str, int]:
        return {part: more[part] + round(times * (more[part] - less[part])) for part in more}

    return MemoryEstimate(of(low.rollout, high.rollout), of(low.update, high.update))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def _rollout(
    policy: PreTrainedModel,
    dtype: torch.dtype,
    slots: int,
    columns: int,
    prompts_apart: tuple[int, int],  # how many, and their tokens
    memory: LiveMemory,
) -> tuple[dict[str, int], int]:
    """What the engine holds from one step to the next, and the most that it takes besides."""
    start = memory.restart()
    weights = DecoderWeights(policy, dtype)
    copied = memory.restart()
    decoder = Decoder(policy, weights, whole_blocks(columns))
    cache, apart = decoder.make_cache(slots), decoder.make_cache(0, GroupCache)
    assert isinstance(apart, GroupCache)
    apart.make_room(*prompts_apart)
    cached = memory.restart()
    prompts = max(1, PREFILL_TOKENS // columns)
    decoder.prefill(torch.zeros(prompts, min(PREFILL_TOKENS, columns)).long(), torch.ones(prompts).long())
    logits = decoder.step(torch.zeros(slots).long(), torch.zeros(slots).long(), cache, columns)
    choose_tokens(logits, 1.0, torch.zeros(slots))
    held = {ENGINE: copied - start, CACHE: cached - copied}
    return held, memory.peak - cached


def _micro_batch(group_size: int, prompt: int, completion: int, tokens: int) -> Sequences:
    """Fill a micro-batch with groups, all of the same lengths."""
    whole, rest = divmod(tokens, prompt + group_size * completion)
    sizes = [group_size] * whole
    if (partial := (rest - prompt) // completion) > 0 or not sizes:
        sizes.append(max(1, partial))
    members = [group for group, size in enumerate(sizes) for _ in range(size)]
    ids = torch.zeros(len(members), completion, dtype=torch.long)
    return PackedGroups().lay_out([[0] * prompt] * len(sizes), members, ids, [completion] * len(members))


def _update(policy: PreTrainedModel, mixed: bool, sequences: Sequences, memory: LiveMemory) -> int:
    """The most that a micro-batch takes beside the weights, if it meets the gradients of one before it."""
    start = memory.restart()
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
        score(policy, sequences, 1.0).logprobs.sum().backward()
    return memory.peak - start
