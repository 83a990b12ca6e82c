"""``best_model/README.md``: what an exported model is, how well it does, how it was made, and how it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from rlvr_pl.proportion import mean_interval
from rlvr_pl.run.configuration import Flat
from rlvr_pl.run.records import read_records, records_path
from rlvr_pl.run.state import RunState
from rlvr_pl.run.summary import measures
from rlvr_pl.run.terminal import visible
from rlvr_pl.verifiers import Number, Verifier

MODEL_CARD = "README.md"
CARD_QUESTION = "Ann has 3 boxes of 4 pens and gives 5 pens away. How many pens are left?"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SETTINGS = {  # of the table, by their keys
    "base policy": "model.policy",
    "adapter (merged)": "model.lora",
    "data": "data.source",
    "objective": "model.loss",
    "optimizer": "model.optimizer",
    "learning rate schedule": "model.lr_schedule",
    "gradient norm at most": "model.max_grad_norm",
    "prompts a rollout": "data.prompts_per_rollout",
    "completions a prompt": "model.group_size",
    "minibatches a rollout": "model.minibatches_per_rollout",
    "passes over a rollout": "model.epochs_per_rollout",
    "completion tokens at most": "model.max_completion_tokens",
    "temperature of rollouts": "model.temperature",
    "precision": "trainer.precision",
    "seed": "seed_everything",
}
_PROGRAM = """\
from transformers import pipeline
ask = pipeline("text-generation", model={folder})
messages = [{{"role": "user", "content": {question}}}]
answer = ask(messages, max_new_tokens={tokens}, do_sample=False, repetition_penalty=1.0)
print(answer[0]["generated_text"][-1]["content"])"""


def write_model_card(
    path: Path,
    run: Path,
    folder: Path,
    config: Flat,
    state: RunState,
    rewards: Mapping[str, float],
    prompt: str,
    best_rollout: int,
    verifier: Verifier | None = None,
) -> None:
    """Write the card of an exported model.

    Args:
        path: of the card.
        run: the run's folder, with its evaluations.
        folder: where the model will lie.
        config: of ``fit``.
        state: of the run: its budget, versions and hardware.
        rewards: their weights by name.
        prompt: the whole of it for ``CARD_QUESTION``.
        best_rollout: after how many rollouts the model was taken.
        verifier: that graded it; of numbers where it is None.
    """
    verifier = verifier or Number()
    policy, objective = str(config.get("model.policy")), state.objective
    text = f"""---
{_front_matter(config, objective)}---

# {policy}, trained by {objective}

Trained by reinforcement learning from verifiable rewards with rlvr_pl {state.environment.get("rlvr_pl")}. These are the
weights of the checkpoint that was best on `val`, after {best_rollout} of {state.rollouts_done} rollouts.

## Load it

{_block(_program(folder, config), "python")}

The tokenizer's chat template puts the prompt below around messages without a system turn; a conversation with one keeps
its own. The model has learned to answer a single question. `generation_config.json` is the base policy's.

## Accuracy

{_accuracy(run, best_rollout, verifier)}

In brackets: 95 % intervals over questions. This is one run: how much training varies from seed to seed is not in them.
*strict* counts an answer {verifier.strict} alone, *flexible* takes the {verifier.flexible}. `val` chose the
checkpoint, `test` did not. Completions were drawn {_drawn(config)}.

## Prompt

{_block(prompt, "text")}

## Training

| | |
|---|---|
{_table(_training(config, state, rewards))}
"""
    path.write_text(text, encoding="utf-8")


def _front_matter(config: Flat, objective: str) -> str:
    """What the Hugging Face hub reads; names that are none of the hub's are left out."""
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if policy := _hub_id(config.get("model.policy")):
        values |= {"base_model": policy, "base_model_relation": "finetune"}
    if source := _hub_id(config.get("data.source")):
        values["datasets"] = [source]
    values["tags"] = ["reinforcement-learning", "rlvr", objective.lower()]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _hub_id(name: Any) -> str | None:
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _program(folder: Path, config: Flat) -> str:
    folder_name, question = (json.dumps(text, ensure_ascii=False) for text in (str(folder), CARD_QUESTION))
    return _PROGRAM.format(folder=folder_name, question=question, tokens=config.get("model.max_completion_tokens"))


def _accuracy(run: Path, best_rollout: int, verifier: Verifier) -> str:
    rows = ["| split | questions | accuracy | before | after |", "|---|--:|---|--:|--:|"]
    for split in ("val", "test"):
        before, after = (_evaluation(run, split, rollout, verifier) for rollout in (0, best_rollout))
        for name, values in after.items():
            earlier = _interval(before[name]) if name in before else "not measured"
            rows.append(f"| {split} | {len(values):,} | {name} | {earlier} | {_interval(values)} |")
    return "\n".join(rows)


def _evaluation(run: Path, split: str, rollout: int, verifier: Verifier) -> dict[str, list[float]]:
    path = records_path(run, split, rollout)
    return measures(read_records(path), verifier) if path.is_file() else {}


def _interval(values: list[float]) -> str:
    low, high = mean_interval(values)
    return f"{fmean(values):.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _drawn(config: Flat) -> str:
    temperature, samples = config.get("model.eval_temperature") or 0, config.get("model.eval_samples") or 1
    how = f"at temperature {temperature:g}" if temperature else "greedily"
    return f"{how}, {samples} a question" if samples > 1 else how


def _training(config: Flat, state: RunState, rewards: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for name, key in _SETTINGS.items():
        if (value := _setting(config, key)) is not None:
            yield name, value
        if name == "objective":
            yield "rewards", ", ".join(f"{weight:g} × {reward}" for reward, weight in rewards.items())
    yield (
        "budget",
        f"{state.rollouts_done:,} rollouts, {state.samples:,} completions, {state.completion_tokens:,} completion "
        f"tokens, {state.optimizer_steps:,} optimizer steps",
    )
    known = state.environment
    commit = f" (commit {known['commit']}{', changed' * bool(known['commit_dirty'])})" if known.get("commit") else ""
    others = ", ".join(f"{name} {known.get(name)}" for name in ("python", "torch", "transformers", "lightning"))
    yield "versions", f"rlvr_pl {known.get('rlvr_pl')}{commit}, {others}"
    yield "hardware", str(known.get("hardware"))


def _setting(config: Flat, key: str) -> str | None:
    """Write a setting: its value, or the name of its class and what it was made with; None where it is not set."""
    inside = {k.removeprefix(f"{key}."): v for k, v in config.items() if k.startswith(f"{key}.")}
    if not inside:
        return None if config.get(key) is None else str(config[key])
    name = str(inside.pop("class_path", "")).rpartition(".")[2]
    made_with = ", ".join(
        f"{k.removeprefix('init_args.')} {v}" for k, v in inside.items() if v is not None and v is not False
    )
    return ": ".join(part for part in (name, made_with) if part)


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "\n".join(
        f"| {name} | {' '.join(visible(value).replace('|', chr(92) + '|').split())} |" for name, value in rows
    )


def _block(text: str, language: str) -> str:
    """Put a text into a code block, whose fence is longer than any within."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
