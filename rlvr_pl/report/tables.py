"""The report's tables, as text: HTML and Markdown show the same ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from scipy.stats import binomtest

from rlvr_pl.report.analysis import Analysis, PairResult
from rlvr_pl.report.efficiency import BUDGETS, EfficiencyPair
from rlvr_pl.report.judging import where_answers_stand
from rlvr_pl.report.outcomes import METRICS
from rlvr_pl.report.statistics import BudgetToReach
from rlvr_pl.report.study import Study
from rlvr_pl.report.two_way import Estimate
from rlvr_pl.report.wording import (
    MISSING,
    amount,
    brackets,
    listed,
    number,
    p_value,
    plain,
    points,
    times,
    with_interval,
)
from rlvr_pl.run.comparison import TUNE, TUNING, choices
from rlvr_pl.run.declaration import DECLARATION, Checkpoint
from rlvr_pl.run.folder import CONFIG

BUDGET_NAMES = {"samples": "samples", "completion_tokens": "tokens", "train_seconds": "seconds"}
CHECKPOINT_NAMES: dict[Checkpoint, str] = {
    "best": "the checkpoint that was best on val",
    "last": "the last checkpoint",
}


@dataclass(frozen=True)
class Table:
    """Text in rows; the first ``labels`` cells of a row say what it is about, the others are its values."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    code: bool = False  # the values are settings, not numbers


def accuracy_table(analysis: Analysis) -> Table:
    """Tabulate what the published table has, with intervals."""
    questions, split = len(analysis.outcomes.golds), analysis.outcomes.split
    rows = [
        [
            result.arm,
            metric,
            str(len(result.seeds)),
            with_interval(scores.initial),
            with_interval(scores.final),
            with_interval(scores.gain, signed=True),
            with_interval(scores.iqm),
        ]
        for metric in METRICS
        for result in analysis.arms
        for scores in [result.scores[metric]]
    ]
    strict, flexible = where_answers_stand(analysis.study)
    caption = (
        f"Accuracy on {questions:,} {split} questions, in percent (Δ in points), with 95 % intervals for new seeds and "
        f"new questions. Strict: {strict}; flexible: {flexible}. Final: with "
        f"{_checkpoint(analysis)}. IQM: interquartile mean of the final accuracies."
    )
    return Table(caption, ["arm", "accuracy", "seeds", "initial", "final", "Δ", "IQM"], rows, labels=2)


def _checkpoint(analysis: Analysis) -> str:
    return CHECKPOINT_NAMES[analysis.outcomes.checkpoint]


def gain_table(analysis: Analysis) -> Table:
    """Tabulate where the gain comes from."""
    rows = [
        [
            result.arm,
            with_interval(result.split.total, signed=True),
            with_interval(result.split.reasoning, signed=True),
            with_interval(result.split.format, signed=True),
        ]
        for result in analysis.arms
    ]
    caption = (
        "The gain in strict accuracy, in points: what also shows in flexible accuracy (better answers), and what does "
        "not (right answers that now stand where they should)."
    )
    return Table(caption, ["arm", "Δ strict", "of it better answers", "of it format"], rows)


def pair_table(analysis: Analysis) -> Table:
    """Tabulate every pair of arms, by both metrics."""
    rows = []
    for pair in analysis.pairs:
        comparison = pair.comparison
        rows.append(
            [
                f"{pair.a} − {pair.b}",
                pair.metric,
                str(len(pair.seeds)),
                with_interval(comparison.difference, signed=True),
                brackets(comparison.simultaneous, signed=True) or MISSING,
                p_value(comparison.p_value),
                p_value(comparison.corrected_p_value),
                with_interval(comparison.probability_of_improvement),
            ]
        )
    caption = (
        f"Differences in final accuracy, with {_checkpoint(analysis)}, in points, paired over seeds and questions, "
        "with 95 % intervals, for new seeds and new questions. All pairs: intervals that hold together with 95 %, and "
        "p corrected likewise (Bonferroni); the verdict stands on these. P(better): probability in percent that a run "
        "of the first beats one of the second, on these questions."
    )
    if analysis.study.interim:
        caption += (
            " Intervals and p-values come with the last run: who looks while runs go on, and may stop, finds "
            "differences that are none."
        )
    columns = ["pair", "accuracy", "seeds", "difference", "all pairs", "p", "p, all pairs", "P(better)"]
    return Table(caption, columns, rows, labels=2)


def checkpoint_table(analysis: Analysis) -> Table:
    """Tabulate the differences with each of the checkpoints; without rows where only one was evaluated."""
    by_checkpoint = analysis.checkpoints
    if len(by_checkpoint) < 2:
        return Table("", [], [])
    rows = [
        [f"{pairs[0].a} − {pairs[0].b}", *(_difference(pair) for pair in pairs)]
        for pairs in zip(*by_checkpoint.values(), strict=True)
    ]
    caption = (
        f"The same differences, {analysis.study.rules.metric}, with each of the checkpoints. Choosing by val favours "
        f"an arm whose checkpoints vary much. The verdict stands on {_checkpoint(analysis)}, as was "
        f"{'declared' if analysis.study.declaration else 'assumed'}."
    )
    return Table(caption, ["pair", *(CHECKPOINT_NAMES[name] for name in by_checkpoint)], rows)


def _difference(pair: PairResult | EfficiencyPair) -> str:
    comparison = pair.comparison if isinstance(pair, PairResult) else pair.area
    p = comparison.p_value
    text = with_interval(comparison.difference, signed=True)
    return text if math.isnan(p) else f"{text}, p {'' if p < 0.001 else '= '}{p_value(p)}"


def outcome_table(analysis: Analysis) -> Table:
    """Tabulate how the runs of each arm ended, the failed ones among them."""
    outcomes, metric = analysis.outcomes, analysis.study.rules.metric
    rows = []
    for arm in analysis.study.arms:
        finished, failed = len(outcomes.seeds[arm]), len(outcomes.failed[arm])
        ended = finished + failed
        if not ended:
            continue
        below, low, high = 0, "", ""
        if finished:
            final, initial = (x[arm, metric].mean(axis=1) for x in (outcomes.final, outcomes.initial))
            below, low, high = int((final < initial).sum()), points(final.min()), points(final.max())
        share = binomtest(failed, ended).proportion_ci(method="wilson")
        rate = with_interval(Estimate(failed / ended, share.low, share.high))
        rows.append([arm, str(finished), str(failed), rate, str(below), low or MISSING, high or MISSING])
    caption = (
        "How the runs ended: failed ones in percent with Wilson's 95 % interval; those that ended below the untrained "
        f"policy; the lowest and the highest final accuracy ({metric}, in percent)."
    )
    return Table(caption, ["arm", "finished", "failed", "failed, %", "below the start", "lowest", "highest"], rows)


def intended_table(analysis: Analysis) -> Table:
    """Tabulate the differences over all runs that were begun; without rows where none has failed."""
    rows = [[f"{pair.a} − {pair.b}", str(len(pair.seeds)), _difference(pair)] for pair in analysis.intended]
    caption = (
        f"All runs that were begun ({analysis.study.rules.metric}): one that failed counts as the untrained policy, "
        "which is what it leaves to its user. Differences in points, with 95 % intervals, for new seeds and new "
        "questions."
    )
    return Table(caption, ["pair", "seeds", "difference"], rows)


def efficiency_table(analysis: Analysis) -> Table:
    """Tabulate what it took to reach the declared accuracies on val."""
    targets = list(analysis.efficiency[0].reach) if analysis.efficiency else []
    columns = ["arm", "area under the curve"]
    columns += [f"{BUDGET_NAMES[name]} to {100 * target:.0f} %" for target in targets for name in BUDGETS]
    rows = [
        [
            efficiency.arm,
            with_interval(efficiency.area),
            *(_reached(efficiency.reach[target][name]) for target in targets for name in BUDGETS),
        ]
        for efficiency in analysis.efficiency
    ]
    caption = (
        f"Area: mean accuracy on val over the rollouts ({analysis.study.rules.metric}), in percent, with 95 % "
        "intervals for new seeds and new questions."
    )
    if targets:
        caption += (
            " What it took to reach an accuracy: the median over runs, linear between evaluations; in brackets the "
            "runs that reached it, where not all did. Seconds also measure what else the machine did: runs that share "
            "it slow each other."
        )
    else:
        caption += (
            " No thresholds were declared, so none are shown: chosen from the curves, they would be chosen to differ."
        )
    return Table(caption, columns, rows)


def course_table(analysis: Analysis) -> Table:
    """Tabulate the differences between the arms' courses; without rows where there is one arm."""
    pairs = analysis.efficiency_pairs
    targets = list(pairs[0].tokens) if pairs else []
    columns = ["pair", "seeds", "area under the curve", *(f"tokens to {100 * target:.0f} %" for target in targets)]
    rows = [
        [
            f"{pair.a} − {pair.b}",
            str(len(pair.seeds)),
            _difference(pair),
            *(times(pair.tokens[target]) for target in targets),
        ]
        for pair in pairs
    ]
    caption = (
        "Differences of the areas, in points, paired over seeds and questions, with 95 % intervals, for new seeds and "
        "new questions (each pair for itself)."
    )
    if targets:
        caption += (
            " Tokens: how many times the second arm's the first needs, a geometric mean with the same kind of "
            "interval; nothing where some run never arrived."
        )
    return Table(caption, columns, rows)


def _reached(budget: BudgetToReach | None) -> str:
    if budget is None:
        return MISSING
    missed = f" ({budget.reached} of {len(budget.runs)})" if budget.reached < len(budget.runs) else ""
    return amount(budget.median) + missed


def tuning_table(study: Study) -> Table:
    """Tabulate the whole grid that the arms tried, and what each took; without rows where they did not."""
    if not study.trials:
        return Table("", [], [])
    chosen = choices(study.trials)
    keys = list(study.trials[0].settings)
    rows = []
    for trial in study.trials:
        mean = MISSING if trial.mean is None else points(trial.mean)
        runs = ", ".join("failed" if value is None else points(value) for value in trial.val)
        settings = [str(trial.settings[key]) for key in keys]
        rows.append([trial.arm, *settings, mean, runs, "chosen" if chosen.get(trial.arm) == trial.settings else ""])
    seeds = study.comparison[TUNE]["seeds"]
    caption = (
        f"What every arm tried before the result's runs, with seeds {listed([str(seed) for seed in seeds])}, none of "
        f"the result's: accuracy on val in percent ({study.rules.metric}), with "
        f"{CHECKPOINT_NAMES[study.rules.checkpoint]}. Each arm took the setting with the best mean. The test split was "
        "not evaluated."
    )
    return Table(caption, ["arm", *keys, "mean", "runs", ""], rows, labels=1 + len(keys))


def declaration_table(study: Study) -> Table:
    """Tabulate what was declared before the first run; without rows where nothing was."""
    declared = study.declaration
    if declared is None:
        return Table("", [], [])
    rows = [
        ["primary outcome", f"final {declared.metric} accuracy, with {CHECKPOINT_NAMES[declared.checkpoint]}"],
        ["equivalent within", f"±{declared.margin:g} points"],
        ["arms", ", ".join(declared.arms)],
        ["seeds", ", ".join(map(str, declared.seeds))],
        ["thresholds on val", ", ".join(f"{value:g} %" for value in declared.thresholds) or "none"],
        ["looks", declared.looks],
        ["made", declared.made],
        ["sha256", declared.sha256],
    ]
    return Table("What was declared before the first run.", ["item", "value"], rows, code=True)


def length_table(analysis: Analysis) -> Table:
    """Tabulate how long right and wrong completions are."""
    rows = [[lengths.name, plain(lengths.wrong), plain(lengths.right)] for lengths in analysis.lengths]
    caption = (
        f"Tokens of a completion after training ({analysis.outcomes.split}, {analysis.study.rules.metric}): means with "
        "95 % intervals for new seeds, on these questions. A mean over a sequence's own tokens is said to let wrong "
        "completions grow (Dr.GRPO, arXiv 2503.20783)."
    )
    return Table(caption, ["arm", "wrong", "right"], rows)


def flip_table(analysis: Analysis) -> Table:
    """Tabulate what became of the questions, in numbers of them."""
    counts = analysis.flips.pivot(index=["arm", "metric"], columns="kind", values="questions")
    columns = ["fixed", "broken", "always solved", "never solved"]
    rows = [
        [result.arm, metric, *(f"{counts.loc[(result.arm, metric), kind]:.1f}" for kind in columns)]
        for metric in METRICS
        for result in analysis.arms
    ]
    caption = (
        f"Of {len(analysis.outcomes.golds):,} questions, before → after training, as a mean over seeds. Fixed: wrong → "
        "right. Broken: right → wrong."
    )
    return Table(caption, ["arm", "accuracy", *columns], rows, labels=2)


def budget_table(study: Study) -> Table:
    """Tabulate what each arm spent."""
    columns = {
        "rollouts_done": "rollouts",
        "samples": "samples",
        "completion_tokens": "tokens",
        "optimizer_steps": "optimizer steps",
        "train_seconds": "training, s",
        "wall_seconds": "wall clock, s",
    }
    rows = []
    for arm in study.arms:
        of_arm = study.runs[study.runs["arm"] == arm]
        finished = of_arm[of_arm["state"] == "finished"]
        means = finished[list(columns)].astype(float).mean()
        rows.append([arm, f"{len(finished)} of {len(of_arm)}", *(amount(means[name]) for name in columns)])
    caption = (
        "The budget of a run: means over the finished runs of each arm. Training: generation, rewards and updates. "
        "Wall clock: evaluations included. Seconds are of what else the machine did as well."
    )
    return Table(caption, ["arm", "finished runs", *columns.values()], rows)


def run_table(study: Study) -> Table:
    """Tabulate every run and where it stands."""
    rows = []
    for run in study.runs.to_dict("records"):
        done = amount(number(run["rollouts_done"]))
        planned = amount(number(run["max_rollouts"]))
        best = amount(number(run["best_rollout"]))
        rows.append([run["arm"], str(run["seed"]), str(run["state"]), f"{done} of {planned}", best])
    caption = "Runs. Best: the rollout after which accuracy on val was highest."
    return Table(caption, ["arm", "seed", "state", "rollouts", "best"], rows, labels=2)


def settings_tables(study: Study) -> tuple[Table, Table]:
    """Tabulate the settings that differ between arms, and those that they share."""
    arms = [arm for arm in study.arms if arm in study.settings]
    keys = list(dict.fromkeys(key for arm in arms for key in study.settings[arm]))
    values = {key: [_setting(study.settings[arm], key) for arm in arms] for key in keys}
    differing = [[key, *row] for key, row in values.items() if len(set(row)) > 1]
    shared = [[key, row[0]] for key, row in values.items() if len(set(row)) == 1]
    return (
        Table("Settings in which the arms differ.", ["setting", *arms], differing, code=True),
        Table("Settings that all arms share.", ["setting", "value"], shared, code=True),
    )


def _setting(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return MISSING
    value = settings[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def environment_table(study: Study) -> Table:
    """Tabulate versions, commit and hardware, and how many runs had each."""
    rows = []
    for column in study.runs.columns:
        if column.startswith("environment."):
            counts = study.runs[column].dropna().map(str).value_counts()
            several = len(counts) > 1
            values = [f"{value} ({count} runs)" if several else str(value) for value, count in counts.items()]
            if values:
                rows.append([column.removeprefix("environment."), "; ".join(values)])
    return Table("Versions and hardware.", ["item", "value"], rows, code=True)


def commands(study: Study) -> str:
    """Write what to type to run it again, and for a comparison the file to type it with."""
    if study.comparison:
        left_out = ("resolved", TUNING, DECLARATION)
        given = {key: value for key, value in study.comparison.items() if key not in left_out}
        file = yaml.safe_dump(given, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
        return f"# compare.yaml\n{file}\npython -m rlvr_pl compare --config compare.yaml"
    first = study.runs.drop_duplicates("arm").dropna(subset="path")
    configs = [(study.folder / path / CONFIG).as_posix() for path in first["path"]]
    return "\n".join(f"python -m rlvr_pl fit --config {config}" for config in configs)
