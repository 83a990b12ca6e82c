"""Low-rank adapters: the policy's linear layers stay as they were loaded, and a product of two thin ones learns.

LoRA, arXiv 2106.09685: W x becomes W x + (lora_alpha / r) · B A x, with A (r, in) drawn and B (out, r) zero at first.
The layers are peft's, put into the policy without its wrapper, which is no transformer and hides the model's settings.

Nothing here ever merges an adapter into the weights that it stands beside: rounding would stay in them. Who needs
merged weights, the rollout engine and the exported model, gets them as tensors of their own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlvr_pl.randomness import adapter_start
from rlvr_pl.types import ConfigError, check_at_least

_ADAPTER = "default"  # peft's own name for it
_SETTING = "model.lora."  # before its settings in a flat configuration
_KEY = ".lora_"  # in the name of every parameter of an adapter, and of no other
BASE = "base_weights"  # in a checkpoint: the fingerprint of the weights that its adapter stands beside


@dataclass(frozen=True)
class LoRA:
    """What is adapted, and how much.

    Args:
        r: rank of the adapters.
        lora_alpha: the adapters' product is scaled by lora_alpha / r.
        target_modules: names of linear layers, such as q_proj, or the ends of their paths; null means all but the
            output embedding.
        lora_dropout: 0; anything else is refused, with the reason.
    """

    r: int = 16
    lora_alpha: int = 32
    target_modules: list[str] | None = None
    lora_dropout: float = 0.0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> LoRA | None:
        """Read the adapter of a whole flat configuration of ``fit``; None where it has none."""
        values = {key.removeprefix(_SETTING): value for key, value in settings.items() if key.startswith(_SETTING)}
        return cls(**values) if values else None

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is loaded.

        Raises:
            ConfigError: naming the key.
        """
        check_at_least(1, "model.lora", r=self.r)
        if self.lora_alpha <= 0:
            raise ConfigError(f"model.lora.lora_alpha is {self.lora_alpha}; it must be above 0")
        if self.lora_dropout != 0:
            raise ConfigError(
                f"model.lora.lora_dropout is {self.lora_dropout}; it must be 0: old and new log-probabilities come "
                "from the same network, and dropout would make their ratio noise"
            )
        if importlib.util.find_spec("peft") is None:
            raise ConfigError("model.lora needs the package peft: pip install peft, or leave model.lora out")

    def targets_in(self, policy: PreTrainedModel) -> list[str]:
        """Find the paths of the linear layers to adapt, in the policy's order.

        Args:
            policy: without an adapter; its weights are not read.

        Raises:
            ConfigError: if a name means no linear layer of the body.
        """
        head = policy.get_output_embeddings()
        modules = policy.named_modules()
        linears = [name for name, module in modules if isinstance(module, nn.Linear) and module is not head]
        if not linears:
            raise ConfigError("model.lora: this policy has no linear layers to adapt; leave model.lora out")
        if self.target_modules is None:
            return linears
        chosen: set[str] = set()
        for target in self.target_modules:
            if not (found := {name for name in linears if _ends_with(name, target)}):
                raise ConfigError(_why_no_target(target, policy, linears))
            chosen |= found
        if not chosen:
            raise ConfigError("model.lora.target_modules is empty; name linear layers, or null for all of them")
        return [name for name in linears if name in chosen]


def _ends_with(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _why_no_target(target: str, policy: PreTrainedModel, linears: Sequence[str]) -> str:
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
    modules = {name: module for name, module in policy.named_modules() if _ends_with(name, target)}
    what = "the policy has no such module"
    if policy.get_output_embeddings() in modules.values():
        what = "the output embedding is read as it is, without an adapter"
    elif modules:
        what = f"it is a {type(next(iter(modules.values()))).__name__}, not a linear layer"
    return f"model.lora.target_modules: {target!r} cannot be adapted: {what}. Choose from {known}"


def check_targets(lora: LoRA, config: PretrainedConfig) -> None:
    """Refuse target modules that the policy does not have, by its configuration alone.

    Raises:
        ConfigError: naming those that it has.
    """
    with torch.device("meta"):
        lora.targets_in(AutoModelForCausalLM.from_config(config))


def add_adapter(policy: PreTrainedModel, lora: LoRA, seed: int) -> None:
    """Put an adapter beside the policy's linear layers, in place, and freeze everything else.

    Until it has learned, the policy computes what it did. The numbers that the adapter starts from are a function of
    the seed.

    Raises:
        ConfigError: if a target module is none.
    """
    _insert(policy, lora)
    for i, (_, layer) in enumerate(adapted_layers(policy)):
        weight, a, b = layer.base_layer.weight, layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
        a.weight = nn.Parameter(adapter_start(seed, i, *a.weight.shape).to(weight))  # device and dtype
        b.weight = nn.Parameter(weight.new_zeros(b.weight.shape))


def _insert(policy: PreTrainedModel, lora: LoRA) -> None:
    """Put layers without numbers beside the policy's: peft would draw some of its own."""
    from peft import LoraConfig  # an optional dependency

    config = LoraConfig(
        r=lora.r, lora_alpha=lora.lora_alpha, target_modules=lora.targets_in(policy), task_type="CAUSAL_LM"
    )
    with torch.device("meta"):
        policy.add_adapter(config, _ADAPTER)


def adapter_shapes(lora: LoRA, config: PretrainedConfig) -> dict[str, torch.Size]:
    """List an adapter's tensors by name, by the policy's configuration alone.

    Raises:
        ConfigError: if a target module is none.
    """
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(config)
        _insert(policy, lora)
    return {key: tensor.shape for key, tensor in policy.state_dict().items() if is_of_adapter(key)}


def adapted_layers(policy: nn.Module) -> Iterator[tuple[str, Any]]:
    """Iterate over the layers that an adapter stands beside, with their paths."""
    return ((name, module) for name, module in policy.named_modules() if is_adapted(module))


def is_adapted(module: nn.Module) -> bool:
    """Tell whether a module is a layer with an adapter beside it."""
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


def why_not_merged(layer: Any) -> str | None:
    """Name what keeps :func:`merged_weight` from being all that a layer computes; None where it is."""
    if type(layer.base_layer) is not nn.Linear or type(layer).__module__ != "peft.tuners.lora.layer":
        return f"a {type(layer).__name__} of {type(layer).__module__}"
    if [*layer.lora_A] != [_ADAPTER] or list(layer.active_adapters) != [_ADAPTER]:
        return "a layer with other adapters"
    if layer.merged or layer.disable_adapters:
        return "a layer whose adapter is merged or off"
    if layer.lora_variant or any(layer.lora_bias.values()):
        return "a variant of LoRA"
    return None


def merged_weight(layer: Any) -> Tensor:
    """Compute W + (lora_alpha / r) · B A of an adapted layer, (out, in), in float32, or float64 where W is.

    The result is a tensor of its own: neither W nor the adapter is written to.
    """
    weight, a, b = (x.weight for x in (layer.base_layer, layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]))
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(dtype), b.to(dtype), a.to(dtype), alpha=layer.scaling[_ADAPTER])


class WithoutAdapter:
    """A policy as it was before it had an adapter: what scoring asks of a reference policy, without a second model."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy

    def base_model(self, **inputs: Any) -> Any:
        """Run the transformer body with the adapter off."""
        self.policy.disable_adapters()
        try:
            return self.policy.base_model(**inputs)
        finally:
            self.policy.enable_adapters()

    def get_output_embeddings(self) -> Any:
        """Return the head, which has no adapter."""
        return self.policy.get_output_embeddings()


# What is kept of it


def is_of_adapter(key: str) -> bool:
    """Tell whether a key of a state dict is an adapter's."""
    return _KEY in key


def check_same_adapter(saved: Mapping[str, Tensor], own: Mapping[str, torch.Size]) -> None:
    """Refuse a checkpoint whose adapter is not the configured one.

    Args:
        saved: the state dict of a checkpoint.
        own: the shapes of what the module which is to hold it has.

    Raises:
        ConfigError: naming both.
    """
    theirs = {key: tensor.shape for key, tensor in saved.items() if is_of_adapter(key)}
    ours = {key: shape for key, shape in own.items() if is_of_adapter(key)}
    if theirs != ours:
        raise ConfigError(
            f"ckpt_path: the checkpoint was written with {_described(theirs)}, and this run has {_described(ours)}; "
            "give it the same model.lora"
        )


def check_same_base(checkpoint: Mapping[str, Any], own: str, policy: str) -> None:
    """Refuse an adapter that has learned beside other weights than those that it would now stand beside.

    Args:
        checkpoint: that holds it; one of an earlier version does not say which these were.
        own: the fingerprint of the policy's weights.
        policy: the policy's name.

    Raises:
        ConfigError: naming both policies.
    """
    if checkpoint.get(BASE, own) != own:
        raise ConfigError(
            f"ckpt_path: the checkpoint's adapter has learned beside other weights than those of model.policy "
            f"{policy!r}; give the policy that it was trained from, as it was then: "
            f"{checkpoint['hyper_parameters'].get('policy')!r}"
        )


def _described(shapes: Mapping[str, torch.Size]) -> str:
    if not shapes:
        return "no adapter (model.lora: null)"
    ranks = sorted({shape[0] for key, shape in shapes.items() if ".lora_A." in key})
    targets = sorted({key.partition(_KEY)[0].rpartition(".")[2] for key in shapes})
    return f"an adapter of r = {', '.join(map(str, ranks))} on {', '.join(targets)}"


def merged_weights(policy: PreTrainedModel) -> dict[str, Tensor]:
    """Merge the adapter into the policy's weights, on the host, by the names that these have without one.

    One weight at a time goes there, so that the device holds no second model.
    """
    layers = dict(adapted_layers(policy))
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    with torch.no_grad():
        for key, tensor in policy.state_dict().items():
            if is_of_adapter(key) or tensor.data_ptr() in seen:  # a tied weight is saved once
                continue
            seen.add(tensor.data_ptr())
            layer = layers.get(key.removesuffix(".base_layer.weight"))
            merged = tensor if layer is None else merged_weight(layer).to(tensor.dtype)
            state[key.replace(".base_layer.", ".")] = merged.cpu()
    return state
