"""Checkpoints as files: written whole, the one before kept, and looked through before anything is loaded from them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rlvr_pl.run.files import name_also, whole_file
from rlvr_pl.run.folder import LAST, PREVIOUS
from rlvr_pl.types import ConfigError

VERIFIER = "verifier"  # in a checkpoint: the name of what told right answers from others
_DAMAGED = ".damaged"
_OURS = ("state_dict", "loops", "optimizer_states", "rollouts_done", "completion_tokens", "hyper_parameters")


class WholeFileCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there whole; ``last.ckpt`` becomes ``previous.ckpt``.

    While it writes there are three of them, and the best.
    Lightning's own way builds the file in memory first, 18 GB of it for a policy of 1.5 billion parameters, and passes
    it through the system's folder for temporary files.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            TypeError: if there are storage options, which a local file has not.
            WriteError: if the disk is full, say; what was there is as it was.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are local files here: there are no storage_options")
        path = Path(path)
        with whole_file(path, keep=path.with_name(PREVIOUS) if path.name == LAST else None) as file:
            try:
                with file.open("wb") as stream:
                    torch.save(checkpoint, stream)
            except RuntimeError as error:  # torch hides what the disk said
                raise error.__context__ if isinstance(error.__context__, OSError) else error from error


def damage(path: Path) -> str | None:
    """Say what is wrong with the bytes of a checkpoint; None if nothing is.

    ``torch.save`` writes a zip archive, which has a checksum (CRC-32) of every tensor; ``torch.load`` does not look at
    them. All of the file is read, a little at a time: about 2 GB a second.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if not start:
            return "is empty"
        if start != b"PK\x03\x04":
            return "is no checkpoint"
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
    except OSError as error:
        return f"is unreadable ({error.strerror})"
    except Exception:  # whatever altered bytes make the library stumble over
        return "is torn: it was not written, or copied, to its end"
    return None if altered is None else f"is altered: the checksum of {altered.partition('/')[2]} does not match"


def whole_checkpoint(path: Path) -> tuple[Path, str | None]:
    """Choose what to load where ``path`` is asked for: a damaged ``last.ckpt`` gives way to the one before it.

    Returns:
        The file to load, and what to tell the user, or None.

    Raises:
        ConfigError: if there is no whole one.
    """
    wrong = damage(path)
    if wrong is None:
        return path, None
    previous = path.with_name(PREVIOUS)
    if path.name != LAST or not previous.exists():
        raise ConfigError(f"ckpt_path: {path} {wrong}; give another checkpoint{_best_beside(path)}")
    if wrong_too := damage(previous):
        raise ConfigError(f"ckpt_path: {path} {wrong}, and {PREVIOUS} {wrong_too}; give another{_best_beside(path)}")
    return previous, f"{path} {wrong}; the one before it, {PREVIOUS}, is used"


def _best_beside(path: Path) -> str:
    best = path.with_name("best.ckpt")
    hint = f", {best} say" if best != path and best.exists() else ""
    return f"{hint}, or leave --ckpt_path out to start a new run"


def put_aside(damaged: Path, used: Path) -> None:
    """Have ``used`` be ``damaged``'s successor under its name, and keep the damaged one for whoever can mend it."""
    name_also(damaged, damaged.with_name(damaged.name + _DAMAGED))
    name_also(used, damaged)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a whole checkpoint, its tensors only where they are looked at.

    Raises:
        ConfigError: if it is not one that this program has written.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever a stranger's file makes the library stumble over
        raise _foreign(path, "it cannot be read as one") from error
    missing = [key for key in _OURS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise _foreign(path, f"it lacks {', '.join(missing)}")
    return checkpoint


def _foreign(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"ckpt_path: {path} is no checkpoint of a run of rlvr_pl ({reason}); give one, or leave it out")


def check_architecture(checkpoint: dict[str, Any], shapes: dict[str, torch.Size], path: Path, policy: str) -> None:
    """Refuse the weights of another architecture.

    Args:
        checkpoint: as ``read_checkpoint`` gives it.
        shapes: of what the module keeps in a checkpoint, by name.
        path: the checkpoint's file.
        policy: the policy's name.

    Raises:
        ConfigError: naming the first tensor that differs.
    """
    held = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    differing = [name for name in {**wanted, **held} if held.get(name) != wanted.get(name)]
    if not differing:
        return
    there, here = (tensors.get(differing[0], "absent") for tensors in (held, wanted))
    name = differing[0].removeprefix("policy.")
    raise ConfigError(
        f"ckpt_path: {path} holds weights of another architecture than model.policy {policy!r}: {name} is {there} "
        f"there and {here} here. Give the policy that it was trained from, "
        f"{checkpoint['hyper_parameters'].get('policy')!r}"
    )


def check_same_run(
    checkpoint: dict[str, Any], settings: Mapping[str, Any], path: Path, other_changes: Sequence[str] = ()
) -> None:
    """Refuse to go on with another seed, objective, policy, prompt or verifier, which would be another run.

    Args:
        checkpoint: as ``read_checkpoint`` gives it.
        settings: of the run that would go on: the module's hyperparameters.
        path: the checkpoint's file.
        other_changes: what else is known to differ, such as the prompt or the verifier.

    Raises:
        ConfigError: with the differences, and how to go on all the same.
    """
    flags = {"seed": "seed_everything", "objective": "model.loss", "policy": "model.policy"}
    before = checkpoint["hyper_parameters"]
    changes = [
        f"{flag} is {settings[name]} and was {before.get(name)}"
        for name, flag in flags.items()
        if _same_place(settings[name]) != _same_place(before.get(name))
    ]
    changes += other_changes
    if changes:
        raise ConfigError(
            f"ckpt_path: {path} is of another run: {', '.join(changes)}. Leave it as it was, leave --ckpt_path out to "
            "start a new run, or go on all the same with --resume_point.allow_changes true"
        )


def _same_place(value: Any) -> Any:
    """Write a policy's folder in one way, however it was given."""
    folder = Path(value).expanduser() if isinstance(value, str) else None
    return str(folder.resolve()) if folder is not None and folder.is_dir() else value
