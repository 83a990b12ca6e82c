"""Run folders as `fit` and `compare` leave them, simulated: configuration, run.json, records and TensorBoard events."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

from rlvr_pl.run.declaration import Declaration
from rlvr_pl.run.records import records_path, write_records

CONFIG: dict[str, Any] = {
    "trainer.accelerator": "cpu",
    "trainer.logger.init_args.save_dir": "lightning_logs",
    "model.policy": "embedded",
    "model.loss.class_path": "rlvr_pl.losses.GSPO",
    "model.loss.init_args.clip_low": 3e-4,
    "model.loss.init_args.clip_high": 4e-4,
    "model.loss.init_args.beta": 0.0,
    "model.group_size": 16,
    "model.minibatches_per_rollout": 4,
    "model.epochs_per_rollout": 1,
    "data.source": "simulated.jsonl",
    "data.prompts_per_rollout": 16,
    "report_test": True,
}
LOSSES: dict[str, dict[str, Any]] = {
    "GSPO": {},
    "GRPO": {
        "model.loss.class_path": "rlvr_pl.losses.GRPO",
        "model.loss.init_args.clip_low": 0.2,
        "model.loss.init_args.clip_high": 0.2,
    },
    "DrGRPO": {
        "model.loss.class_path": "rlvr_pl.losses.DrGRPO",
        "model.loss.init_args.clip_low": 0.2,
        "model.loss.init_args.clip_high": 0.2,
    },
}
ENVIRONMENT = {
    "rlvr_pl": "0.1.0",
    "commit": "0123456789abcdef",
    "commit_dirty": False,
    "python": "3.11.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "lightning": "2.6.6",
    "hardware": "a simulated CPU, 2 cores",
    "threads": 1,
    "precision": "32-true",
}
TEXT = "<reasoning>\nshe sells {0} of them\n</reasoning>\n<answer>\n{0}\n</answer>\n"


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` → ``{"a": {"b": 1}}``."""
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split(".")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return config


def write_evaluation(
    run: Path,
    split: str,
    rollout: int,
    strict: Sequence[bool] | np.ndarray,
    flexible: Sequence[bool] | np.ndarray | None = None,
    text: str = TEXT,
    gold_offset: int = 0,
    samples: int = 1,
) -> Path:
    """Records with these verdicts, ``samples`` after one another for each question; the gold answers are
    ``gold_offset + question``."""
    flexible = strict if flexible is None else flexible
    records = []
    for i, (right, right_flexible) in enumerate(zip(strict, flexible, strict=True)):
        question, sample = divmod(i, samples)
        gold = gold_offset + question
        said = gold if right_flexible else gold + 1
        completion = text.format(said) if right or not right_flexible else f"the answer is {said}"
        records.append(
            {
                "question": question,
                "sample": sample,
                "gold": str(gold),
                "extracted": str(said) if right else None,
                "correct": bool(right),
                "correct_flexible": bool(right_flexible),
                "formatted": bool(right),
                "tokens": 40 + question % 7,
                "truncated": False,
                "completion": completion,
            }
        )
    path = records_path(run, split, rollout)
    write_records(path, records)
    return path


def write_scalars(run: Path, scalars: Mapping[str, Mapping[int, float]]) -> None:
    """One event file with ``{tag: {rollout: value}}``."""
    with SummaryWriter(str(run)) as writer:
        for tag, values in scalars.items():
            for rollout, value in values.items():
                writer.add_scalar(tag, value, rollout)
        writer.add_text("samples", "a sample completion", 1)


def write_run(
    root: Path,
    arm: str,
    seed: int,
    *,
    initial: float | Sequence[bool] = 0.1,
    final: float | Sequence[bool] = 0.7,
    flexible_initial: float | Sequence[bool] | None = None,
    flexible_final: float | Sequence[bool] | None = None,
    questions: int = 40,
    val_questions: int = 20,
    rollouts: int = 8,
    val_every: int = 4,
    done: int | None = None,
    config: Mapping[str, Any] | None = None,
    scalars: Mapping[str, float] | None = None,
    state: Mapping[str, Any] | None = None,
    text: str = TEXT,
) -> Path:
    """A run's folder ``root/arm/seed_N``, finished unless ``done`` is less than ``rollouts``.

    Args:
        initial, final: the test verdicts, or the probability, under 1, that one is right; strict ones.
        flexible_initial, flexible_final: the same for the flexible verdicts; as the strict ones where None.
        config, state: what differs from the usual config.yaml and run.json.
        scalars: constants that replace the usual course of a tag.
    """
    run = root / arm / f"seed_{seed}"
    run.mkdir(parents=True)
    rng = np.random.default_rng([zlib.crc32(arm.encode()), seed])
    hardness = np.random.default_rng(0).random(questions)  # of a question, the same in every run
    done = rollouts if done is None else done

    def verdicts(share: float | Sequence[bool], hardness: np.ndarray) -> np.ndarray:
        if not isinstance(share, float):
            return np.asarray(share, dtype=bool)
        odds = share / (1.001 - share) * np.exp(4 * (0.5 - hardness))
        return rng.random(len(hardness)) < odds / (1 + odds)

    settings = CONFIG | LOSSES.get(arm, {}) | {"seed_everything": seed, "data.max_rollouts": rollouts} | (config or {})
    (run / "config.yaml").write_text(yaml.safe_dump(nested(settings)), encoding="utf-8")

    def mean(share: float | Sequence[bool]) -> float:
        return float(np.mean(share))

    values: dict[str, dict[int, float]] = {}
    for rollout in dict.fromkeys([*range(0, done + 1, val_every), *([rollouts] if done == rollouts else [])]):
        grown = (1 - np.exp(-4 * rollout / rollouts)) / (1 - np.exp(-4))
        share = mean(initial) + (mean(final) - mean(initial)) * grown
        right = verdicts(share, rng.random(val_questions))
        right_flexible = right | (rng.random(val_questions) < 0.3 * (1 - grown))
        write_evaluation(run, "val", rollout, right, right_flexible, text)
        values.setdefault("val/accuracy", {})[rollout] = right.mean()
        values.setdefault("val/accuracy_flexible", {})[rollout] = right_flexible.mean()
    for rollout in range(1, done + 1):
        grown = 1 - np.exp(-4 * rollout / rollouts)
        for tag, value in {
            "train/reward": 0.4 + 1.8 * mean(final) * grown + 0.05 * rng.normal(),
            "train/tokens_mean": 41.0 + rng.normal(),
            "train/truncated_rate": 0.02 * (1 - grown),
            "train/entropy": 0.5 * (1 - 0.7 * grown) + 0.02 * rng.normal(),
            "train/kl": 1e-3 * (1 + 0.2 * rng.normal()),
            "train/ratio_mean": 1.0 + 1e-4 * rng.normal(),
            "train/ratio_max": 1.0 + abs(0.01 * rng.normal()) + 1e-3,
            "train/clip_fraction_low": 0.1 * rng.random(),
            "train/clip_fraction_high": 0.1 * rng.random(),
            "train/grad_norm": 1.0 + 0.1 * rng.normal(),
            "wall/rollout_s": 2.5 + 0.1 * rng.random(),
            "wall/update_s": 3.5 + 0.1 * rng.random(),
        }.items():
            values.setdefault(tag, {})[rollout] = (scalars or {}).get(tag, value)
    write_scalars(run, values)

    for rollout, share, loose in ((0, initial, flexible_initial), (rollouts, final, flexible_final)):
        if rollout == 0 or done == rollouts:
            right = verdicts(share, hardness)
            right_flexible = right if loose is None else verdicts(loose, hardness)
            if isinstance(loose, float):
                right_flexible |= right
            write_evaluation(run, "test", rollout, right, right_flexible, text)

    samples = done * settings["data.prompts_per_rollout"] * settings["model.group_size"]
    facts = {
        "state": "finished" if done == rollouts else "training",
        "objective": settings["model.loss.class_path"].rpartition(".")[2],
        "seed": seed,
        "rollouts_done": done,
        "max_rollouts": rollouts,
        "completion_tokens": 41 * samples,
        "optimizer_steps": done * settings["model.minibatches_per_rollout"] * settings["model.epochs_per_rollout"],
        "samples": samples,
        "best_rollout": rollouts if done == rollouts else None,
        "train_seconds": 6.1 * done,
        "wall_seconds": 7.0 * done + 5,
        "updated": "2026-01-02T03:04:05+00:00",
        "environment": ENVIRONMENT,
        **(state or {}),
    }
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return run


RATES = [1e-4, 2e-4, 4e-4]


def write_plan(root: Path, arms: Sequence[str], seeds: Sequence[int], **rules: Any) -> None:
    """``comparison.yaml``, as ``compare`` writes it; ``rules`` are what is declared but for arms and seeds."""
    declared = Declaration({arm: {"model.loss": arm} for arm in arms}, tuple(seeds), **rules)
    plan = {
        "folder": str(root),
        "base": ["configs/quickstart.yaml"],
        "overrides": {},
        "arms": {arm: {"model.loss": arm} for arm in arms},
        "seeds": list(seeds),
        "metric": declared.metric,
        "checkpoint": declared.checkpoint,
        "margin": declared.margin,
        "thresholds": list(declared.thresholds),
        "declaration": declared.as_written(),
        "tune": {"grid": {"model.optimizer.lr": RATES}, "seeds": [100, 101]},
        "tuning": [
            {"arm": arm, "settings": {"model.optimizer.lr": lr}, "val": [0.5 - d, 0.52 - d], "chosen": d == 0}
            for arm in arms
            for lr, d in zip(RATES, (0.25, 0.0, 0.125), strict=True)
        ],
        "resolved": {arm: CONFIG | LOSSES.get(arm, {}) for arm in arms},
    }
    (root / "comparison.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")


def write_study(
    root: Path, arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[int] = range(5), plan: bool = True, **common: Any
) -> Path:
    """A whole comparison: ``arms`` are names and what each passes to :func:`write_run`."""
    for arm, settings in arms.items():
        for seed in seeds:
            write_run(root, arm, seed, **(common | dict(settings)))
    if plan:
        write_plan(root, list(arms), seeds)
    return root
