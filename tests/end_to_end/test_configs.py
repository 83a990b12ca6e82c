"""Every shipped configuration runs, and the three objectives differ in nothing but themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rlvr_pl.compare.comparison_file import load_comparison
from rlvr_pl.compare.plan import Run
from rlvr_pl.main import main
from rlvr_pl.run.records import read_records
from tests.helpers.paths import CONFIGS
from tests.helpers.runs import last_state, read_scalars

OBJECTIVES = {"grpo": "GRPO", "dr_grpo": "DrGRPO", "gspo": "GSPO"}
GSPO_BAND = {"compare": (3e-4, 4e-4), "compare_embedded": (3e-3, 4e-3)}
COMPARISONS = {"compare": 15, "compare_embedded": 18, "compare_published": 3}  # and how many runs each has
CONTROLS = ("compare_controls", "compare_staleness")


def small(save_dir: Path, *configs: str, **overrides: Any) -> list[str]:
    """``fit`` with shipped configurations, made small."""
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.logger.save_dir": save_dir,
        "model.max_completion_tokens": 8,
        "data.source": "rlvr_pl.data.EmbeddedProblems",
        "data.source.train_size": 300,
        "data.source.test_size": 6,
        "data.val_size": 6,
        "data.max_rollouts": 2,
        **overrides,
    }
    files = [f"--config={CONFIGS / name}.yaml" for name in configs]
    return ["fit", *files, *(f"--{key}={value}" for key, value in settings.items())]


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The configuration that ``fit`` would run with."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_configuration_is_run_here() -> None:
    names = {file.stem for file in CONFIGS.glob("*.yaml")}
    others = ("embedded", "lora", "published", "quickstart", "qwen_gsm8k", "sharded")  # the last in test_two_ranks.py
    own_data = ("choice", "math")  # in test_own_data.py
    assert names == {*OBJECTIVES, *COMPARISONS, *CONTROLS, *others, *own_data}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_runs(name: str, policy: str, tmp_path: Path) -> None:
    overrides = {"model.policy": policy, "data.prompts_per_rollout": 4, "model.gradient_checkpointing": "true"}
    main(small(tmp_path, name, **overrides))
    scalars = read_scalars(tmp_path / name / "version_0")
    assert set(scalars["train/reward"]) == {1, 2}
    assert set(scalars["val/accuracy"]) == {0, 2}
    assert set(scalars["test/accuracy"]) == {0, 2}
    assert "train/kl_ref" not in scalars, "no reference policy: beta is 0"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_embedded_overlay_runs_any_objective(name: str, tmp_path: Path) -> None:
    main(small(tmp_path, name, "embedded"))
    assert set(read_scalars(tmp_path / name / "version_0")["train/reward"]) == {1, 2}


def test_lora_overlay_trains_an_adapter(tmp_path: Path) -> None:
    main(small(tmp_path, "quickstart", "lora"))
    run = tmp_path / "quickstart" / "version_0"
    assert set(read_scalars(run)["train/reward"]) == {1, 2}
    assert all(".lora_" in key for key in last_state(run)["state_dict"])
    assert (run / "best_adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_published_overlay_has_one_update_and_an_inert_clip(name: str, policy: str, tmp_path: Path) -> None:
    main(small(tmp_path, name, "published", **{"model.policy": policy}))  # in bf16-true, as published
    scalars = read_scalars(tmp_path / name / "version_0")
    assert scalars["train/ratio_mean"] == {1: 1.0, 2: 1.0}
    assert scalars["train/clip_fraction_low"] == scalars["train/clip_fraction_high"] == {1: 0.0, 2: 0.0}
    assert set(scalars["train/kl_ref"]) == {1, 2}, "beta is 0.04"


def test_published_overlay_is_the_published_regime(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config(capsys, f"--config={CONFIGS}/gspo.yaml", f"--config={CONFIGS}/published.yaml")
    loss = config["model"]["loss"]["init_args"]
    assert (loss["beta"], loss["clip_low"], loss["clip_high"]) == (0.04, 0.1, 0.1)
    assert (config["data"]["prompts_per_rollout"], config["model"]["group_size"]) == (2, 8)
    assert (config["data"]["max_rollouts"], config["model"]["max_completion_tokens"]) == (200, 400)
    assert config["model"]["optimizer"]["init_args"]["lr"] == 5e-6
    assert config["model"]["minibatches_per_rollout"] == 1
    assert config["data"]["chat_template"] is False


def test_the_three_objectives_differ_in_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    configs = {name: printed_config(capsys, f"--config={CONFIGS}/{name}.yaml") for name in OBJECTIVES}
    for name, config in configs.items():
        loss = config["model"].pop("loss")
        assert loss["class_path"] == f"rlvr_pl.losses.{OBJECTIVES[name]}"
        assert loss["init_args"]["beta"] == 0.0
        assert config["trainer"]["logger"]["init_args"].pop("name") == name
    assert configs["grpo"] == configs["dr_grpo"] == configs["gspo"]


@pytest.mark.parametrize(
    ("source", "objective", "clip"),
    [("gspo", "GRPO", (0.2, 0.2)), ("dr_grpo", "GRPO", (0.2, 0.2)), ("quickstart", "GSPO", (3e-4, 4e-4))],
)
def test_an_objective_swapped_on_the_command_line_brings_its_own_clip_and_keeps_beta(
    source: str, objective: str, clip: tuple[float, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """GSPO's band left in GRPO would ruin a comparison without a word."""
    swapped = printed_config(capsys, f"--config={CONFIGS}/{source}.yaml", f"--model.loss={objective}")["model"]["loss"]
    expected = {"clip_low": clip[0], "clip_high": clip[1], "beta": 0.0, "advantage_eps": 1e-4}
    assert swapped == {"class_path": f"rlvr_pl.losses.{objective}", "init_args": expected}
    one = printed_config(
        capsys, f"--config={CONFIGS}/{source}.yaml", "--model.loss=DrGRPO", "--model.loss.clip_low=3e-4"
    )["model"]["loss"]
    assert one["init_args"] == {"clip_low": 3e-4, "clip_high": 0.2, "beta": 0.0}


def test_quickstart_runs_and_ends_with_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(small(tmp_path, "quickstart"))
    shown = capsys.readouterr().out
    run = tmp_path / "quickstart" / "version_0"
    for line in ("GRPO: 2 rollouts", "strict (in the tags)", "flexible (last number)", f"tensorboard --logdir {run}"):
        assert line in shown
    for place in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best_model/config.json", "config.yaml"):
        assert (run / place).is_file()
    records = read_records(run / "evaluations" / "test-000002.jsonl")
    assert [r["question"] for r in records] == list(range(6))


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_s_arms_differ_in_the_objective_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    comparison = load_comparison(CONFIGS / f"{name}.yaml")
    assert (len(comparison.runs()), comparison.folder) == (COMPARISONS[name], Path("lightning_logs") / name)
    resolved = comparison.resolved
    losses = {}
    for arm, config in resolved.items():
        losses[arm] = {key: config.pop(key) for key in list(config) if key.startswith("model.loss.")}
        assert losses[arm]["model.loss.class_path"] == f"rlvr_pl.losses.{arm}"
    assert list(resolved) == ["GSPO", "GRPO", "DrGRPO"]
    assert resolved["GSPO"] == resolved["GRPO"] == resolved["DrGRPO"]
    beta, clip = {"model.loss.init_args.beta"}, {"model.loss.init_args.clip_low", "model.loss.init_args.clip_high"}
    expected = ({0.04}, {0.1}) if name == "compare_published" else ({0.0}, {*GSPO_BAND[name], 0.2})
    values = [{loss[key] for loss in losses.values() for key in keys} for keys in (beta, clip)]
    assert tuple(values) == expected, "one beta; each objective's own clip range, or the published one in all arms"


def test_the_embedded_comparison_tunes_every_arm_alike() -> None:
    tune = load_comparison(CONFIGS / "compare_embedded.yaml").tune
    assert tune is not None
    assert (len(tune.points()), len(tune.seeds)) == (3, 2)


def test_the_controls_are_one_arm_of_the_embedded_comparison_again_and_at_a_tenth_of_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    study = load_comparison(CONFIGS / "compare_controls.yaml")
    assert len(study.runs()) == 15
    first, second, tenth = study.resolved.values()
    assert second == first | {"seed_offset": 1000}
    rate = "model.optimizer.init_args.lr"
    assert (first[rate], tenth[rate], tenth) == (1e-4, 1e-5, first | {rate: 1e-5})
    embedded = load_comparison(CONFIGS / "compare_embedded.yaml").resolved["GRPO"]
    assert {key for key in first.keys() | embedded.keys() if first.get(key) != embedded.get(key)} == {
        rate,
        "data.max_rollouts",
        "data.source.init_args.test_size",
    }


def test_with_one_update_a_rollout_gspo_is_grpo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same completions and rewards, and weights that rounding alone tells apart.

    Not to the bit, with a ratio of exactly 1 neither (``rescored``): GSPO takes the mean over the tokens before
    the ratio's gradient and GRPO after it, whose last bits differ, and AdamW makes steps of gradients near 0.
    """
    monkeypatch.chdir(CONFIGS.parent)
    comparison = load_comparison(CONFIGS / "compare_staleness.yaml")
    assert len(comparison.runs()) == 12
    updates = {arm: config["model.minibatches_per_rollout"] for arm, config in comparison.resolved.items()}
    assert updates == {"GRPO-1": 1, "GSPO-1": 1, "GRPO-4": 4, "GRPO-8": 8}
    made_small = [flag for flag in small(tmp_path) if flag.startswith(("--model", "--data"))]
    weights, rewards = [], []
    for arm in ("GRPO-1", "GSPO-1"):
        run = Run(arm, 3, tmp_path / arm / "seed_3")
        main([*comparison.fit_arguments(run), *made_small, "--model.max_completion_tokens=48"])
        weights.append(load_file(run.folder / "best_model" / "model.safetensors"))
        rewards.append(read_scalars(run.folder)["train/reward"])
    assert rewards[0] == rewards[1]
    assert any(rewards[0].values())
    apart = max(float((a - b).abs().max()) for a, b in zip(*(w.values() for w in weights), strict=True))
    assert apart < 0.1 * 1.5e-4, "a tenth of what a step moves a weight"


def test_a_run_of_the_embedded_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    comparison = load_comparison(CONFIGS / "compare_embedded.yaml")
    run = Run("DrGRPO", 3, tmp_path / "DrGRPO" / "seed_3")
    made_small = [flag for flag in small(tmp_path) if flag.startswith(("--model", "--data"))]
    main([*comparison.fit_arguments(run), *made_small])
    assert set(read_scalars(run.folder)["train/reward"]) == {1, 2}
