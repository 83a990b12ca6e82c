"""Each caveat fires where it should, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rlvr_pl.report.caveats import Caveat, find_caveats
from rlvr_pl.report.outcomes import Outcomes, collect_outcomes
from rlvr_pl.report.study import Study, load_study
from rlvr_pl.run.declaration import Declaration
from tests.helpers.studies import write_study


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Outcomes]:
    """A comparison that no caveat applies to; the tests change their copy of it."""
    folder = tmp_path_factory.mktemp("sound")
    arms: dict[str, dict[str, Any]] = {"GSPO": {}, "GRPO": {}, "DrGRPO": {}}
    study = load_study(write_study(folder, arms, questions=12, val_questions=4, rollouts=4, val_every=2))
    return study, collect_outcomes(study)


def with_settings(study: Study, settings: dict[str, Any], **arms: dict[str, Any]) -> Study:
    """All arms get ``settings``, and each its own."""
    return replace(study, settings={arm: s | settings | arms.get(arm, {}) for arm, s in study.settings.items()})


def with_values(study: Study, tag: str, value: float, *arms: str) -> Study:
    curves = study.curves.copy()
    curves.loc[(curves["tag"] == tag) & curves["arm"].isin(arms), "value"] = value
    return replace(study, curves=curves)


def with_runs(study: Study, column: str, values: dict[tuple[str, int], Any]) -> Study:
    runs = study.runs.copy()
    for (arm, seed), value in values.items():
        runs.loc[(runs["arm"] == arm) & (runs["seed"] == seed), column] = value
    return replace(study, runs=runs)


def titles(caveats: list[Caveat]) -> list[str]:
    return [caveat.title for caveat in caveats]


ONE_UPDATE = {"model.minibatches_per_rollout": 1}


def test_a_sound_comparison_has_none(sound: tuple[Study, Outcomes]) -> None:
    assert find_caveats(*sound) == []


# The same algorithm by construction


def test_grpo_and_gspo_with_one_update_are_the_same_algorithm(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    caveats = find_caveats(with_settings(study, ONE_UPDATE), outcomes)
    assert titles(caveats) == ["GSPO and GRPO are the same algorithm here"]
    assert "With one update per rollout the ratio is always 1" in caveats[0].text


@pytest.mark.parametrize(
    "settings",
    [
        {"model.minibatches_per_rollout": 2},
        {"model.minibatches_per_rollout": 1, "model.epochs_per_rollout": 2},
    ],
)
def test_with_two_updates_they_are_not(settings: dict[str, Any], sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    assert find_caveats(with_settings(study, settings), outcomes) == []


@pytest.mark.parametrize(
    "own",
    [
        {"model.loss.init_args.beta": 0.04},
        {"model.loss.init_args.advantage_eps": 1e-6},
        {"model.optimizer.init_args.lr": 1e-5},
        {"model.loss.class_path": "my_project.GSPO"},
    ],
)
def test_what_else_differs_keeps_them_apart(own: dict[str, Any], sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    assert find_caveats(with_settings(study, ONE_UPDATE, GSPO=own), outcomes) == []


def test_on_policy_a_clip_makes_no_difference(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    drgrpo = study.settings["DrGRPO"]
    wide = {"model.loss.init_args.clip_high": 0.28}
    for settings, expected in (
        (ONE_UPDATE, ["GRPO and DrGRPO are the same algorithm here"]),
        ({}, []),
    ):
        changed = with_settings(study, settings, GRPO=drgrpo | wide | settings)
        assert titles(find_caveats(changed, outcomes)) == expected


def test_gspo_and_gspo_token_are_the_same_algorithm_always(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    token = study.settings["GSPO"] | {"model.loss.class_path": "rlvr_pl.losses.objectives.GSPOToken"}
    caveats = find_caveats(with_settings(study, {}, GRPO=token), outcomes)
    assert titles(caveats) == ["GSPO and GRPO are the same algorithm here"]
    assert "With one advantage per sequence" in caveats[0].text


def test_an_a_a_study_is_called_one(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    caveats = find_caveats(with_settings(study, {}, GRPO=study.settings["GSPO"]), outcomes)
    assert titles(caveats) == ["GSPO and GRPO have the same configuration"]


# Inert ratios and clips


def test_a_ratio_that_was_one_throughout(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    apart = {"model.optimizer.init_args.lr": 1e-5}
    inert = with_settings(study, {}, DrGRPO=ONE_UPDATE | apart, GRPO=ONE_UPDATE)
    inert = with_values(inert, "train/ratio_max", 1.0, "DrGRPO", "GRPO")
    inert = with_values(inert, "train/clip_fraction_low", 0.0, "DrGRPO")
    inert = with_values(inert, "train/clip_fraction_high", 0.0, "DrGRPO")
    assert titles(find_caveats(inert, outcomes)) == ["GRPO and DrGRPO: the ratio was 1 throughout"]


def test_one_ratio_off_one_is_enough_to_be_silent(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    nearly = with_values(with_settings(study, {}, DrGRPO=ONE_UPDATE), "train/ratio_max", 1.0, "DrGRPO")
    nearly.curves.loc[nearly.curves.index[nearly.curves["tag"] == "train/ratio_max"][-1], "value"] = 1.0001
    assert find_caveats(nearly, outcomes) == []


def test_a_clip_that_never_bound(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    one_side = with_values(study, "train/clip_fraction_low", 0.0, "DrGRPO", "GRPO")
    assert find_caveats(one_side, outcomes) == []
    both = with_values(one_side, "train/clip_fraction_high", 0.0, "DrGRPO")
    assert titles(find_caveats(both, outcomes)) == ["DrGRPO: the clip never bound"]
    unlogged = replace(study, curves=study.curves[~study.curves["tag"].str.startswith("train/clip")])
    assert find_caveats(unlogged, outcomes) == []


# Budgets, seeds, runs


def test_unequal_samples(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    (caveat,) = find_caveats(with_runs(study, "samples", {("GRPO", seed): 2048 for seed in range(5)}), outcomes)
    assert caveat.title == "The budgets are not equal"
    assert "GSPO 4 rollouts, 1,024 samples, 41,984 tokens; GRPO 4 rollouts, 2,048 samples" in caveat.text


def test_equal_samples_with_unequal_tokens(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    for tokens, expected in ((41_984 * 1.09, []), (41_984 * 1.11, ["Equal in samples, not in tokens"])):
        longer = with_runs(study, "completion_tokens", {("GRPO", seed): round(tokens) for seed in range(5)})
        assert titles(find_caveats(longer, outcomes)) == expected


def test_unfinished_and_failed_runs(sound: tuple[Study, Outcomes]) -> None:
    study, _ = sound
    changed = with_runs(study, "state", {("GRPO", 1): "failed", ("GSPO", 4): "training"})
    unfinished, failures, few = find_caveats(changed, collect_outcomes(changed))
    assert failures.title == "Not as many runs failed in each arm"
    assert failures.text.startswith("Failed: GSPO 0; GRPO 1; DrGRPO 0. ")
    assert unfinished.title == "2 of 15 runs are not finished"
    assert unfinished.text.startswith("GSPO seed 4: training; GRPO seed 1: failed. ")
    assert few.title == "Fewer than 5 seeds"
    assert few.text.startswith("Finished runs: GSPO 4; GRPO 4. ")
    assert "p-values are too small" not in few.text
    fewest = with_runs(study, "state", {("GRPO", seed): "training" for seed in (0, 1, 2)})
    few = find_caveats(fewest, collect_outcomes(fewest))[-1]
    assert few.text.startswith("Finished runs: GRPO 2. ")
    assert "With two, p-values are too small as well" in few.text


def test_runs_that_answered_other_questions(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    (caveat,) = find_caveats(study, replace(outcomes, mismatches=["A/seed_0: lacks some", "A/seed_1: lacks more"]))
    assert caveat == Caveat("Not every run answered the same questions", "A/seed_0: lacks some. A/seed_1: lacks more.")


def test_what_was_not_declared_is_exploratory(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    (caveat, untuned) = find_caveats(replace(study, comparison={}), outcomes)
    assert untuned.title == "The arms were not tuned"
    assert caveat.title == "Exploratory"
    assert caveat.text.startswith("Nothing in the folder says what was declared before the runs. ")
    assert find_caveats(replace(study, comparison={}, arms=study.arms[:1]), outcomes) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"margin": 5.0}, "Margin was declared as 2.0 and is 5.0."),
        ({"checkpoint": "last"}, "Checkpoint was declared as best and is last."),
        ({"thresholds": [10.0]}, "Thresholds was declared as [] and is [10.0]."),
        ({"seeds": [0, 1, 2, 3]}, ""),  # by the runs that are there or planned, not by the list
    ],
)
def test_departures_from_the_declaration(change: dict[str, Any], said: str, sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    found = find_caveats(replace(study, comparison=study.comparison | change), outcomes)
    assert titles(found) == (["Exploratory"] if said else [])
    assert all(caveat.text.startswith(said) for caveat in found)


def test_arms_and_seeds_that_were_added_or_left_out(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    declared = Declaration({"GSPO": {}, "GRPO": {}, "RLOO": {}}, (0, 1, 2, 3, 7))
    caveat, *_ = find_caveats(
        replace(study, comparison=study.comparison | {"declaration": declared.as_written()}), outcomes
    )
    assert caveat.title == "Exploratory"
    assert caveat.text.startswith(
        "Arm DrGRPO was added. Arm RLOO was left out. Seed 4 was added. Seed 7 was left out. What is found here"
    )


def test_a_declaration_that_was_changed_afterwards_is_none(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    altered = study.comparison["declaration"] | {"margin": 5.0}
    caveat, *_ = find_caveats(replace(study, comparison=study.comparison | {"declaration": altered}), outcomes)
    assert caveat.text.startswith("The declaration is not what its digest says")


def test_an_outlying_run_and_an_arm_that_scatters(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound

    def with_accuracies(**arms: list[float]) -> Outcomes:
        grid = (np.arange(400) + 0.5) / 400
        final = {
            (arm, metric): np.array([grid < share for share in arms.get(arm, [0.70, 0.71, 0.72, 0.73, 0.74])], float)
            for arm in study.arms
            for metric in ("strict", "flexible")
        }
        golds = [(question, "1") for question in range(400)]
        return replace(outcomes, golds=golds, after={"best": final}, initial=final)

    assert find_caveats(study, with_accuracies()) == []
    (outlying,) = find_caveats(study, with_accuracies(GRPO=[0.70, 0.71, 0.72, 0.73, 0.30]))
    assert outlying.title == "Outlying runs"
    assert outlying.text.startswith("GRPO seed 4 30.0 % (the arm's median is 71.0 %). ")
    (scatter,) = find_caveats(study, with_accuracies(GRPO=[0.62, 0.65, 0.72, 0.79, 0.82]))
    assert scatter.title == "Some arms scatter more than others"
    assert scatter.text.startswith("Standard deviation of the runs' accuracies, in points: GSPO 1.6; GRPO 8.")


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.94, []), (0.95, ["Accuracy at the ceiling"]), (0.06, []), (0.05, ["Accuracy at the floor"])],
)
def test_ceiling_and_floor(accuracy: float, expected: list[str], sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    final = outcomes.final | {("GRPO", "strict"): np.full((5, 12), accuracy)}
    caveats = find_caveats(study, replace(outcomes, after={"best": final}))
    assert titles(caveats) == expected
    assert not caveats or f"GRPO {100 * accuracy:.1f} %" in caveats[0].text


def test_val_in_place_of_test(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    assert titles(find_caveats(study, replace(outcomes, split="val"))) == ["No test split was evaluated"]


def test_mixed_conditions(sound: tuple[Study, Outcomes]) -> None:
    study, outcomes = sound
    (caveat,) = find_caveats(with_runs(study, "environment.commit", {("GRPO", 0): "fedcba"}), outcomes)
    assert caveat.title == "The runs were not made under the same conditions"
    assert caveat.text.startswith("commit: 0123456789abcdef, fedcba. ")


def test_folders_of_which_little_is_known(sound: tuple[Study, Outcomes]) -> None:
    """Runs without run.json, configuration and events: nothing to hold against them, and no error."""
    study, outcomes = sound
    runs = study.runs[[c for c in study.runs if not c.startswith("environment.")]].copy()
    runs[["samples", "completion_tokens", "rollouts_done"]] = pd.NA
    bare = replace(study, runs=runs, settings={}, curves=study.curves.iloc[:0])
    assert find_caveats(bare, outcomes) == []


def test_nothing_finished(tmp_path: Path) -> None:
    write_study(tmp_path, {"A": {}}, seeds=[0], questions=4, val_questions=4, rollouts=4, val_every=2, done=2)
    study = load_study(tmp_path)
    assert titles(find_caveats(study, collect_outcomes(study))) == ["1 of 1 runs are not finished"]
