"""Loading a policy and its tokenizer: the embedded default, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlvr_pl.types import ConfigError

EMBEDDED_MODEL = Path(__file__).parent / "embedded" / "model"

# Log-probabilities are taken from hidden states and the output embedding alone (scoring.py), so a model that rescales
# its logits afterwards would be scored wrongly.
_LOGIT_RESCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def find_model(name: str) -> str:
    """Find where to load ``name`` from: a folder's path, or a hub id as it is.

    Args:
        name: ``embedded``, the path of a model folder, or a hub id such as ``Qwen/Qwen2.5-1.5B-Instruct``.

    Raises:
        ConfigError: if ``name`` is a path and not a model folder.
    """
    if name == "embedded":
        return str(EMBEDDED_MODEL)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"model.policy: the folder {name!r} is not a model folder: it has no config.json")
        return str(path)
    if path.exists():
        raise ConfigError(f"model.policy: {name!r} is a file; give the folder that holds config.json and the weights")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigError(f"model.policy: there is no folder {name!r}")
    return name


def _unusable(name: str, error: Exception) -> ConfigError:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if Path(find_model(name)).is_dir():
        return ConfigError(f"model.policy: cannot load {name!r}: the model folder is incomplete: {reason}")
    return ConfigError(
        f"model.policy: cannot load {name!r}: it is neither a local folder nor available on the Hugging Face hub "
        f"({reason}). Check the name and the network, or give the path of a downloaded folder, or 'embedded'"
    )


def load_config(name: str) -> PretrainedConfig:
    """Load the model's configuration alone, which shows early whether the model can be used.

    Raises:
        ConfigError: if it cannot be found or read, or the model rescales its logits.
    """
    path = find_model(name)
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:  # whatever a stranger's folder makes the library stumble over
        raise _unusable(name, error) from error
    for key in _LOGIT_RESCALING:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise ConfigError(f"model.policy: {name!r} rescales its logits ({key}), which is not supported")
    # Dropout would make the importance ratio noise: old and new log-probs come from the same network.
    for key, value in list(vars(config).items()):
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a policy.

    Raises:
        ConfigError: if it cannot be found or read.
    """
    path = find_model(name)
    if Path(path).is_dir() and not any((Path(path) / file).is_file() for file in _TOKENIZER_FILES):
        # transformers would make up a tokenizer of one token
        raise ConfigError(f"model.policy: the folder {name!r} has no tokenizer (tokenizer.json)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # see load_config
        raise _unusable(name, error) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.policy: the tokenizer of {name!r} has no end-of-sequence token")
    return tokenizer


def load_policy(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """Load the policy in float32, whatever the files hold: AdamW at 1e-6 would lose its updates in bfloat16 weights.

    Raises:
        ConfigError: if the weights cannot be found or read, or do not fill the model: what is missing would be random.
    """
    path = find_model(name)
    try:
        # On the host, whatever device is the default: transformers takes a default device for a device map, which needs
        # accelerate. Lightning makes the training device the default while a model is configured, and moves the model
        # there afterwards.
        with torch.device("cpu"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # see load_config
        raise _unusable(name, error) from error
    policy, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ConfigError(f"model.policy: the weights of {name!r} lack {len(missing)} tensors, {missing[0]} among them")
    return policy


def empty_policy(name: str) -> PreTrainedModel:
    """Make the policy without any numbers.

    Raises:
        ConfigError: if the model's configuration cannot be found or read.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(name))


def fingerprint(policy: nn.Module) -> str:
    """Compute what tells a policy's weights from others, whatever they are called and however they are saved.

    Args:
        policy: as ``load_policy`` gives it. Elsewhere it may have been rounded.

    Returns:
        The sha256 of its parameters' names, shapes and bytes, which takes about a second for a billion of them.
    """
    digest = hashlib.sha256()
    for name, parameter in policy.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensor_shapes(name: str) -> dict[str, torch.Size]:
    """List the tensors of a policy that a checkpoint holds, by name, without loading a weight.

    Raises:
        ConfigError: if the model's configuration cannot be found or read.
    """
    return {name: tensor.shape for name, tensor in empty_policy(name).state_dict().items()}


def save_policy(policy: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Save weights as a model folder of a policy's kind, whatever wraps the policy itself.

    Args:
        policy: gives configuration and dtype.
        weights: all of them, on the host.
        folder: is made.
    """
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(policy.config, dtype=policy.dtype)
    plain.generation_config = policy.generation_config
    plain.save_pretrained(folder, state_dict=dict(weights))


def checkpoint_activations(policy: PreTrainedModel) -> None:
    """Have a policy compute its activations again in the backward pass rather than keep them."""
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # It hooks the embedding for the sake of frozen ones; ours learns, and the decoder covers no hooks.
    policy.disable_input_require_grads()


@contextmanager
def constants_kept(model: nn.Module) -> Iterator[None]:
    """Keep the numbers that a model has computed for itself, rotary frequencies above all, while it is converted.

    ``model.to(torch.bfloat16)`` rounds every buffer. A rotary frequency is multiplied by the position: rounded to eight
    bits, it turns Qwen2.5's heads by up to 0.35 rad too much or too little at position 300, and by 1.7 at 1,500. Where
    weights are loaded in bfloat16 these numbers stay in float32; here they do too. They are the buffers that no
    checkpoint holds.
    """
    constants = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set and buffer.is_floating_point()
    ]
    yield
    for module, name, constant in constants:
        converted = module.get_buffer(name)
        if converted.dtype != constant.dtype:
            module.register_buffer(name, constant.to(converted.device), persistent=False)


def stop_token_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Collect every id that ends a completion: the tokenizer's, and all of the model's generation config."""
    configured = policy.generation_config.eos_token_id if policy.generation_config else None
    ids = [configured] if isinstance(configured, int) else list(configured or ())
    return tuple(dict.fromkeys([*ids, tokenizer.eos_token_id]))
