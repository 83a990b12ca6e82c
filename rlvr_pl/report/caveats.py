"""What a referee would object to, said before they do: each caveat is a function from a study to sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rlvr_pl.report.departures import find_departures
from rlvr_pl.report.outcomes import Outcomes
from rlvr_pl.report.study import Study
from rlvr_pl.report.two_way import ALPHA
from rlvr_pl.report.wording import listed, number, points
from rlvr_pl.run.comparison import TUNE, choices
from rlvr_pl.run.configuration import updates_per_rollout

FEW_SEEDS = 5
OUTLYING, OUTLYING_POINTS = 5.0, 5.0  # robust standard deviations from the arm's median, and at least so many points
LEAST_DEVIATION = 1.0  # points, under which it does not matter whose runs scatter more
CEILING, FLOOR = 0.95, 0.05  # final accuracies beyond which an arm has no room to differ
TOKENS_APART = 0.1  # relative difference of completion tokens worth a word
_ON_POLICY_TWINS = {"GRPO": "GSPO", "GSPOToken": "GSPO"}  # equal gradients where every ratio is 1
_TWINS = {"GSPOToken": "GSPO"}  # equal gradients always, with one advantage a sequence


@dataclass(frozen=True)
class Caveat:
    """One objection: what it is about, in a few words, and what it means for the result."""

    title: str
    text: str


def find_caveats(study: Study, outcomes: Outcomes) -> list[Caveat]:
    """Find every caveat that applies, the most damaging first."""
    return [
        *_exploratory(study),
        *_same_gradient(study),
        *_inert_objective(study),
        *_unbound_clip(study),
        *_other_questions(outcomes),
        *_unequal_budgets(study),
        *_unfinished(study),
        *_failures(study, outcomes),
        *_outlying_runs(study, outcomes),
        *_unequal_variances(study, outcomes),
        *_few_seeds(study, outcomes),
        *_untuned(study),
        *_chosen_at_an_end(study),
        *_ceiling_or_floor(study, outcomes),
        *_chosen_on_val(outcomes),
        *_mixed_environments(study),
    ]


def _same_gradient(study: Study) -> Iterator[Caveat]:
    """Arms that cannot differ, from their settings alone."""
    for a, b in combinations(study.arms, 2):
        first, second = study.settings.get(a), study.settings.get(b)
        if not first or not second:
            continue
        if first == second:
            yield Caveat(
                f"{a} and {b} have the same configuration",
                "They differ in nothing but their names, so any difference between them is chance.",
            )
        elif _gradient(first) == _gradient(second):
            why = (
                "with one update per rollout the ratio is always 1, where their losses have the same gradient"
                if updates_per_rollout(first) == 1
                else "with one advantage per sequence their losses have the same gradient"
            )
            yield Caveat(
                f"{a} and {b} are the same algorithm here",
                f"{why.capitalize()}: any difference between them is rounding and chance, not the objective. "
                "To compare objectives that differ in their ratio, set model.minibatches_per_rollout to 2 or more.",
            )


def _gradient(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a gradient depends on, objectives of one gradient under one name."""
    name = str(settings.get("model.loss.class_path", settings.get("model.loss")))
    ours = name.startswith("rlvr_pl.losses.") or "." not in name  # of a stranger's objective nothing is known
    on_policy = ours and updates_per_rollout(settings) == 1
    if ours:
        name = name.rpartition(".")[2]
        name = (_ON_POLICY_TWINS if on_policy else _TWINS).get(name, name)
    inert = ("clip_low", "clip_high") if on_policy else ()
    rest = {k: v for k, v in settings.items() if k not in ("model.loss", "model.loss.class_path")}
    return {"loss": name} | {k: v for k, v in rest.items() if not (k.startswith("model.loss.") and k.endswith(inert))}


def _values(study: Study, arm: str, tag: str) -> pd.Series:
    curves = study.curves
    return curves.loc[(curves["arm"] == arm) & (curves["tag"] == tag), "value"]


def _ratio_was_one(study: Study, arm: str) -> bool:
    """0 is what a rollout without any gradient logs."""
    largest = _values(study, arm, "train/ratio_max")
    updates = updates_per_rollout(study.settings.get(arm, {}))
    return bool(len(largest) and largest.max() == 1.0 and not updates > 1)


def _inert_objective(study: Study) -> Iterator[Caveat]:
    arms = [arm for arm in study.arms if _ratio_was_one(study, arm)]
    if arms:
        yield Caveat(
            f"{listed(arms)}: the ratio was 1 throughout",
            "There was one update per rollout, so every completion was learnt from by the policy that wrote it. Ratio "
            "and clip, in which GRPO and GSPO differ, had no effect at all.",
        )


def _unbound_clip(study: Study) -> Iterator[Caveat]:
    def never_bound(arm: str) -> bool:
        sides = [_values(study, arm, f"train/clip_fraction_{side}") for side in ("low", "high")]
        return all(len(values) and (values == 0).all() for values in sides)

    arms = [arm for arm in study.arms if never_bound(arm) and not _ratio_was_one(study, arm)]
    if arms:
        yield Caveat(
            f"{listed(arms)}: the clip never bound",
            "No ratio left its range in any rollout: the result says nothing about the clip or its width.",
        )


def _other_questions(outcomes: Outcomes) -> Iterator[Caveat]:
    if outcomes.mismatches:
        yield Caveat("Not every run answered the same questions", _sentences(outcomes.mismatches))


def _unequal_budgets(study: Study) -> Iterator[Caveat]:
    spent = study.finished.groupby("arm", sort=False)[["rollouts_done", "samples", "completion_tokens"]]
    means = spent.mean().astype(float)
    unequal = [name for name in ("rollouts_done", "samples") if study.finished[name].dropna().nunique() > 1]
    tokens = means["completion_tokens"].dropna()
    apart = len(tokens) > 1 and tokens.max() > (1 + TOKENS_APART) * tokens.min()
    amounts = "; ".join(
        f"{arm} {row.rollouts_done:,.0f} rollouts, {row.samples:,.0f} samples, {row.completion_tokens:,.0f} tokens"
        for arm, row in means.iterrows()
    )
    if unequal:
        yield Caveat(
            "The budgets are not equal",
            f"Means over finished runs: {amounts}. An arm that trained more is not a better objective.",
        )
    elif apart:
        yield Caveat(
            "Equal in samples, not in tokens",
            f"Completions differ in length between the arms: {amounts} (means over finished runs). Per token or second "
            "the comparison may come out otherwise; see the learning curves over those.",
        )


def _unfinished(study: Study) -> Iterator[Caveat]:
    others = study.runs[study.runs["state"] != "finished"]
    if len(others):
        runs = "; ".join(f"{run.arm} seed {run.seed}: {run.state}" for run in others.itertuples())
        yield Caveat(
            f"{len(others)} of {len(study.runs)} runs are not finished",
            f"{runs}. They are in the curves, and in no final number.",
        )


def _few_seeds(study: Study, outcomes: Outcomes) -> Iterator[Caveat]:
    few = {arm: len(seeds) for arm, seeds in outcomes.seeds.items() if 0 < len(seeds) < FEW_SEEDS}
    if few:
        counts = "; ".join(f"{arm} {count}" for arm, count in few.items())
        # In simulated studies of two seeds without a difference up to 8 % of the p-values fell under .05.
        two = " With two, p-values are too small as well: do not take p < .05 as evidence." if 2 in few.values() else ""
        yield Caveat(
            f"Fewer than {FEW_SEEDS} seeds",
            f"Finished runs: {counts}. How much runs differ among themselves is then poorly known, and intervals are "
            f"wide or missing.{two}",
        )


def _exploratory(study: Study) -> Iterator[Caveat]:
    departures = find_departures(study)
    if len(study.arms) > 1 and departures:
        yield Caveat(
            "Exploratory",
            f"{_sentences([departure[0].upper() + departure[1:] for departure in departures])} What is found here is a "
            "question for a study of its own, whose rules are declared before its first run.",
        )


def _failures(study: Study, outcomes: Outcomes) -> Iterator[Caveat]:
    if len(set(map(len, outcomes.failed.values()))) > 1:
        counts = "; ".join(f"{arm} {len(seeds)}" for arm, seeds in outcomes.failed.items())
        yield Caveat(
            "Not as many runs failed in each arm",
            f"Failed: {counts}. The runs that are left are a choice of the better ones, so that no arm is called "
            "better. See the differences with failed runs as untrained ones.",
        )


def _outlying_runs(study: Study, outcomes: Outcomes) -> Iterator[Caveat]:
    """Runs far from their arm's others: a mean of runs is then mostly about how many of those there were.

    Far is in units of the median deviation from the median, times 1.4826 for normal draws (Hampel 1974).
    """
    found = []
    for arm in outcomes.arms if outcomes.golds else []:
        runs = outcomes.final[arm, study.rules.metric].mean(axis=1)
        middle = float(np.median(runs))
        of_questions = math.sqrt(middle * (1 - middle) / len(outcomes.golds))  # what chance does to one run
        scatter = max(1.4826 * float(np.median(np.abs(runs - middle))), of_questions)
        far = max(OUTLYING * scatter, OUTLYING_POINTS / 100)
        for seed, run in zip(outcomes.seeds[arm], runs, strict=True):
            if len(runs) >= 3 and abs(run - middle) > far:
                found.append(f"{arm} seed {seed} {points(run)} % (the arm's median is {points(middle)} %)")
    if found:
        yield Caveat(
            "Outlying runs",
            f"{'; '.join(found)}. Such runs are a finding about stability. A mean with few of them says little about "
            "how often they come, and its interval covers less than it says: look at the runs one by one.",
        )


def _unequal_variances(study: Study, outcomes: Outcomes) -> Iterator[Caveat]:
    """Arms of which one is less reliable than another (Brown & Forsythe 1974)."""
    runs = {
        arm: outcomes.final[arm, study.rules.metric].mean(axis=1)
        for arm in outcomes.arms
        if outcomes.golds and len(outcomes.seeds[arm]) >= 3
    }
    deviations = {arm: float(of_arm.std(ddof=1)) for arm, of_arm in runs.items()}
    if len(runs) < 2 or max(deviations.values()) < LEAST_DEVIATION / 100 or min(deviations.values()) == 0:
        return
    if stats.levene(*runs.values(), center="median").pvalue < ALPHA:
        each = "; ".join(f"{arm} {points(deviation)}" for arm, deviation in deviations.items())
        yield Caveat(
            "Some arms scatter more than others",
            f"Standard deviation of the runs' accuracies, in points: {each}. Intervals of differences allow for it; "
            "that one arm is less reliable is a result beside its mean.",
        )


def _untuned(study: Study) -> Iterator[Caveat]:
    losses = {str(study.settings[arm].get("model.loss.class_path")) for arm in study.arms if arm in study.settings}
    if len(losses) > 1 and TUNE not in study.comparison:
        yield Caveat(
            "The arms were not tuned",
            "One learning rate for all takes another step with each objective, and favours the one that it happens to "
            "suit. Let every arm choose from the same grid: tune in the comparison file.",
        )


def _chosen_at_an_end(study: Study) -> Iterator[Caveat]:
    found = []
    for arm, settings in choices(study.trials).items():
        for key, value in settings.items():
            tried = {number(trial.settings[key]) for trial in study.trials if trial.arm == arm}
            if len(tried) > 2 and number(value) in (min(tried), max(tried)):
                found.append(f"{arm} took {key} {value}")
    if found:
        yield Caveat(
            "A choice at an end of what was tried",
            f"{'; '.join(found)}. Beyond it may lie a better one: widen the grid.",
        )


def _ceiling_or_floor(study: Study, outcomes: Outcomes) -> Iterator[Caveat]:
    finals = {arm: outcomes.final[arm, study.rules.metric].mean() for arm in outcomes.arms if outcomes.golds}
    for arms, where in (
        ([arm for arm, share in finals.items() if share >= CEILING], "ceiling"),
        ([arm for arm, share in finals.items() if share <= FLOOR], "floor"),
    ):
        if arms:
            shares = "; ".join(f"{arm} {finals[arm]:.1%}".replace("%", " %") for arm in arms)
            hard = "easy" if where == "ceiling" else "hard"
            yield Caveat(
                f"Accuracy at the {where}",
                f"{shares}. The questions are too {hard} to tell arms apart that may well differ elsewhere.",
            )


def _chosen_on_val(outcomes: Outcomes) -> Iterator[Caveat]:
    if outcomes.arms and outcomes.split == "val":
        yield Caveat(
            "No test split was evaluated",
            "Final accuracies are those on val, which also chose each run's checkpoint: they are too high by an "
            "unknown amount. Set report_test: true.",
        )


def _mixed_environments(study: Study) -> Iterator[Caveat]:
    mixed = []
    for key in ("commit", "commit_dirty", "rlvr_pl", "torch", "transformers", "hardware", "threads", "precision"):
        column = f"environment.{key}"
        if column in study.runs:
            values = sorted({str(value) for value in study.runs[column].dropna()})
            if len(values) > 1:
                mixed.append(f"{key}: {', '.join(values)}")
    if mixed:
        yield Caveat(
            "The runs were not made under the same conditions",
            f"{'; '.join(mixed)}. Seconds do not compare, and small differences may come from there.",
        )


def _sentences(texts: list[str]) -> str:
    return ". ".join(texts) + "."
