"""The part of ``benchmarks/gpu.sh`` that trains: whether it works, with the embedded model, and how fast, at 1.5B.

Every command runs as on a machine without accelerate, which is no dependency.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import torch
from lightning.pytorch import Trainer
from policies import random_policy
from transformers import PretrainedConfig

from rlvr_pl.data import EmbeddedProblems, GSM8KDataModule
from rlvr_pl.losses import GRPO, GSPO
from rlvr_pl.memory import estimate_memory
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.rewards import Completion, RewardTerm
from rlvr_pl.run.records import read_records, records_path

REPOSITORY = Path(__file__).parents[1]
WITHOUT_ACCELERATE = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *a: None if name.partition(".")[0] == "accelerate" else find(name, *a)
from rlvr_pl.main import main
main()
"""
PUBLISHED_STEP_S = 25.4  # a step of the published script on its A800: 16 completions of up to 400 tokens and one update


def noise(completion: Completion) -> float:
    """A reward that differs within every group, so that nothing is left out of an update."""
    return zlib.crc32(completion.text.encode()) / 2**32


def embedded_fit(folder: Path, device: str, **flags: object) -> Path:
    """Run ``fit`` on the embedded default.

    Returns:
        The newest run in ``folder``.

    Raises:
        RuntimeError: with its last line if it fails.
    """
    settings = {
        "trainer.accelerator": "gpu" if device == "cuda" else "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.logger.init_args.save_dir": folder,
        "report_test": "false",
        **flags,
    }
    command = [sys.executable, "-c", WITHOUT_ACCELERATE, "fit", "--config=configs/quickstart.yaml"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError((result.stdout + result.stderr).strip().splitlines()[-1])
    return max((folder / "quickstart").glob("version_*"), key=lambda run: run.stat().st_mtime)


def greedy_accuracy(run: Path, rollout: int) -> float:
    return mean(record["correct"] for record in read_records(records_path(run, "val", rollout)))


def works(device: str, rollouts: int) -> Iterator[tuple[str, str]]:
    """Whether it learns in every precision, and resumes to the bit."""
    with tempfile.TemporaryDirectory() as name:
        for precision in ("32-true", "bf16-mixed", "bf16-true"):
            flags = {
                "trainer.precision": precision,
                "data.max_rollouts": rollouts,
                "trainer.val_check_interval": rollouts,
            }
            what = f"embedded, {precision}, {rollouts} rollouts: strict accuracy"
            try:
                run = embedded_fit(Path(name) / precision, device, **flags)
                yield what, f"{greedy_accuracy(run, 0):.1%} → {greedy_accuracy(run, rollouts):.1%}"
            except RuntimeError as error:
                yield what, f"FAILED: {error}"
        what = "2 rollouts and 2 more after a resume are 4 in one go, to the bit"
        try:
            flags = {"data.val_size": 8, "trainer.val_check_interval": 2, "trainer.deterministic": "true"}
            whole = embedded_fit(Path(name) / "whole", device, **flags, **{"data.max_rollouts": 4})
            embedded_fit(Path(name) / "parts", device, **flags, **{"data.max_rollouts": 2})
            parts = embedded_fit(Path(name) / "parts", device, **flags, **{"data.max_rollouts": 4, "ckpt_path": "last"})
            states = [
                torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
                for run in (whole, parts)
            ]
            same = all(torch.equal(states[0][key], states[1][key]) for key in states[0])
            yield what, "yes" if same else "NO"
        except RuntimeError as error:
            yield what, f"FAILED: {error}"


def training_step(
    shape: PretrainedConfig,
    device: str,
    precision: str,
    beta: float,
    prompts: int,
    budget: int,
    *,
    minibatches: int,
    micro_batch_tokens: int,
) -> Iterator[tuple[str, str]]:
    """The second of two training steps of a random policy, whose completions all run into their budget.

    Yields:
        Seconds by part, tokens a second, and memory against its estimate.
    """
    module = GroupPolicyModule(
        "embedded",
        GRPO(beta=beta) if beta else GSPO(),
        rewards=[RewardTerm(noise)],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, fused=True),
        max_completion_tokens=budget,
        minibatches_per_rollout=minibatches,
        micro_batch_tokens=micro_batch_tokens,
        gradient_checkpointing=True,
        release_rollout_memory=True,
    )
    data = GSM8KDataModule(
        EmbeddedProblems(train_size=2 * prompts + 8), prompts_per_rollout=prompts, max_rollouts=2, val_size=8
    )
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with (
        patch("rlvr_pl.module.load_config", lambda name: shape),
        patch("rlvr_pl.module.load_policy", lambda name, config: random_policy(shape)),
        patch("rlvr_pl.module.stop_token_ids", lambda policy, tokenizer: (shape.vocab_size - 1,)),
    ):
        trainer.fit(module, data)
    seconds = module.seconds
    step = sum(seconds.values())
    completions = prompts * module.group_size
    parts = ", ".join(f"{part} {seconds[part]:.2f}" for part in ("rollout", "update"))
    name = f"{completions} × {budget}, {precision}, beta {beta:g}"
    yield f"training step, {name}, s", f"{step:.2f} ({parts})"
    yield "    completion tokens a second", f"{completions * budget / step:,.0f}"
    if completions == 16 and budget == 400:
        yield f"    the published step on an A800, {PUBLISHED_STEP_S} s, is", f"{PUBLISHED_STEP_S / step:.1f} × as long"
    if device == "cuda":
        estimate = estimate_memory(
            shape,
            precision=precision,
            prompt_tokens=90,
            completion_tokens=budget,
            group_size=module.group_size,
            rollout_slots=min(256, completions),
            micro_batch_tokens=micro_batch_tokens,
            gradient_checkpointing=True,
            reference=beta > 0,
            release_rollout_memory=True,
        )
        peak = torch.cuda.max_memory_allocated()
        yield "    peak memory, GB (estimate)", f"{peak / 1e9:.1f} ({estimate.peak / 1e9:.1f})"
