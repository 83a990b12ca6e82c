"""What answers: a model, or a checkpoint of a run, with the prompt that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rlvr_pl.cli import place_of_runs
from rlvr_pl.data.prompts import PromptFormat, format_of, saved_prompt
from rlvr_pl.lora import LoRA
from rlvr_pl.losses import GSPO
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.run.checkpoint_files import read_checkpoint
from rlvr_pl.run.configuration import read_config
from rlvr_pl.run.folder import find_checkpoint
from rlvr_pl.run.lock import RunLock
from rlvr_pl.run.place import Place
from rlvr_pl.run.resume import choose_checkpoint
from rlvr_pl.types import ConfigError


def load_model(name: str, seed: int) -> tuple[GroupPolicyModule, PromptFormat]:
    """Load a model, with the prompt that its tokenizer carries or else the usual one.

    Args:
        name: ``embedded``, a model folder such as a run's ``best_model``, or a hub id.
        seed: of the sampling noise.

    Raises:
        ConfigError: if it cannot be loaded.
    """
    module = GroupPolicyModule(name, GSPO(), seed=seed)  # the objective is not asked
    module.configure_model()
    return _on_device(module), format_of(module.tokenizer)


def load_checkpoint(path: Path, policy: str | None, seed: int) -> tuple[GroupPolicyModule, PromptFormat]:
    """Load a checkpoint of a run, with that run's prompt.

    Args:
        path: of the file, in its run's folder.
        policy: where the policy lies that it was trained from; None means where it lay then.
        seed: of the sampling noise.

    Raises:
        ConfigError: if it is no checkpoint of this program, or of another policy.
    """
    checkpoint = read_checkpoint(path)
    prompt, settings = saved_prompt(checkpoint), checkpoint["hyper_parameters"]
    if prompt is None:
        raise ConfigError(
            f"{path} was written before checkpoints held their prompt; give the run's best_model as --model"
        )
    config, _ = read_config(path.absolute().parents[1])
    module = GroupPolicyModule(
        policy or settings["policy"],
        GSPO(),
        max_completion_tokens=settings["max_completion_tokens"],
        seed=seed,
        lora=LoRA.of(config),
    )
    module.check_tensors(checkpoint, path)
    module.configure_model()
    module.check_base(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return _on_device(module), prompt


def find(name: str, of_fit: Sequence[str]) -> Path:
    """Find the checkpoint that is meant, as ``--ckpt_path`` of other commands does.

    Args:
        name: ``last``, ``best``, a run's folder, or a file.
        of_fit: arguments of ``fit`` that say where the runs lie, such as ``--config``; for ``last`` and ``best``.

    Raises:
        ConfigError: if there is none that is whole.
    """
    # Where runs lie does not depend on the policy, but every command demands one.
    place = place_of_runs(["test", "--model.policy=embedded", *of_fit]) if name in ("last", "best") else Place(Path())
    try:
        find_checkpoint(name, place.runs, place.version)
    except ConfigError as error:
        what = str(error).partition("; leave")[0]
        raise ConfigError(f"{what}; give --config of the run, the run's folder, or a file") from error
    return choose_checkpoint(name, place, None, RunLock())[0]


def _on_device(module: GroupPolicyModule) -> GroupPolicyModule:
    return module.to("cuda") if torch.cuda.is_available() else module
