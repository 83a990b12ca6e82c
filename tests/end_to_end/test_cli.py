"""What a user can get wrong ends in one line that names the key and the remedy; subcommands beside fit."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import rlvr_pl.module
from rlvr_pl.cli import resolve
from rlvr_pl.data import EmbeddedProblems
from rlvr_pl.main import main
from rlvr_pl.pretrained import load_tokenizer
from rlvr_pl.run.lock import try_lock
from rlvr_pl.run.records import read_records, records_path
from rlvr_pl.run.terminal import visible
from tests.helpers.paths import CONFIGS
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import best_rollout, charts_of, has_samples, hparams_of, last_state, read_scalars, tiny_run

QUICKSTART = str(CONFIGS / "quickstart.yaml")


@pytest.fixture(scope="module")
def run(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs")
    main(tiny_run(policy, folder, report_test="true"))
    return folder / "run" / "version_0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.grop_size=8"], r"model\.grop_size.*Did you mean model\.group_size"),
        (["--data.max_rollout=8"], r"data\.max_rollout.*Did you mean data\.max_rollouts"),
        (["--config={tmp}/typo.yaml"], r"model\.grop_size.*Did you mean model\.group_size"),
        (["--model.lr=1e-3"], r"--model\.lr.*Did you mean model\.optimizer\.lr\?"),
        (
            ["--model.lr_scheduler=tests.helpers.runs.unannotated_scheduler"],
            r"model\.lr_scheduler: tests\.helpers\.runs\.unannotated_scheduler is neither .* annotations say",
        ),
        (["--model.lr_schedule={{warmup: 1.5}}"], r"model\.lr_schedule\.warmup is 1\.5; it is a share of the run"),
        (["--model.loss=GSPPO"], r"model\.loss.*GSPPO.*Choose from DrGRPO,.*GRPO, GSPO, GSPOToken"),
        (["--model.loss=torch.nn.Linear"], r"model\.loss"),
        (["--model.loss.clip_lo=3e-4"], r"model\.loss.*clip_lo.*--model\.loss\.help"),
        (["--model.loss.clip_low=-1"], r"model\.loss\.clip_low is -1\.0; it must lie in \[0, 1\]"),
        (["--model.group_size=1"], r"model\.group_size is 1; .* at least 2"),
        (["--model.group_size=eight"], r"model\.group_size.*eight"),
        (["--model.temperature=0"], r"model\.temperature is 0"),
        (["--model.temperature=.nan"], r"model\.temperature is nan; it must be a finite number$"),
        (["--model.max_grad_norm=.inf"], r"model\.max_grad_norm is inf; it must be a finite number$"),
        (["--model.loss.beta=.inf"], r"model\.loss\.beta is inf; it must be a finite number$"),
        (["--model.eval_samples=4"], r"model\.eval_samples.*eval_temperature"),
        (["--data.prompts_per_rollout=10"], r"data\.prompts_per_rollout is 10.*4 minibatches.*multiple of 4"),
        (["--data.source=nowhere.jsonl"], r"data\.source: there is no file or folder 'nowhere\.jsonl'"),
        (["--data.bad_rows=skip"], r"data\.bad_rows.*refuse.*drop"),
        (["--model.policy={tmp}"], r"model\.policy: the folder .* has no config\.json"),
        (["--model.policy=./nowhere"], r"model\.policy: there is no folder '\./nowhere'"),
        (["--model.rewards=[]"], r"model\.rewards is empty"),
        (["--model.rewards=[{{function: no.such_reward}}]"], r"model\.rewards.*no\.such_reward"),
        (["--config=nowhere.yaml"], r"nowhere\.yaml"),
        (["--ckpt_path=nowhere.ckpt"], r"ckpt_path: there is no file 'nowhere\.ckpt'"),
        (["--ckpt_path=last"], r"ckpt_path: no run under .* has a last\.ckpt yet"),
        (["--resume_point.every_n_rollouts=0"], r"resume_point\.every_n_rollouts is 0"),
        (
            ["--model.max_completion_tokens=500"],
            r"model\.max_completion_tokens is 500; .* the 512 positions of 'embedded'",
        ),
        (["--trainer.precision=16-mixed"], r"trainer\.precision is 16-mixed.*use bf16-mixed"),
        (["--trainer.max_epochs=3"], r"trainer\.max_epochs is 3; .* in rollouts; set data\.max_rollouts$"),
        (["--seed_everything=-1"], r"seed_everything is -1; it must be from 0 to 4,294,967,295$"),
        (["--model.optimizer.lr=-1"], r"model\.optimizer: Invalid learning rate: -1\.0$"),
        (
            ["--model.optimizer.lr=1e38"],
            r"model\.optimizer: with lr 1e\+38, .* the first step leaves no finite weight; lower lr$",
        ),
        (["--model.optimizer.lr=.inf"], r"model\.optimizer: with lr inf, .* leaves no finite weight; lower lr$"),
        (["--trainer.logger=CometLogger"], r"loggers\.CometLogger cannot be made: .*comet"),
        (
            ["--trainer.strategy=sharded", "--model.lora.r=4"],
            r"error: model\.lora: an adapter's policy cannot be sharded; it needs no gradients and no moments",
        ),
        (["--trainer.strategy=none"], r"trainer: You selected an invalid strategy name: `strategy='none'`"),
        (
            ["--trainer.logger.save_dir=/proc/logs"],
            r"run_dir: nothing can be written to '/proc/logs/quickstart'",
        ),
        (["--data.val_size=8192"], r"data\.val_size is 8192, but there are only 8192"),
    ],
)
def test_a_mistake_ends_in_one_line_before_any_model_is_loaded(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "typo.yaml").write_text("model:\n  grop_size: 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rlvr_pl.module, "load_policy", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={QUICKSTART}", *(a.format(tmp=tmp_path) for a in arguments)])
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert not (tmp_path / "lightning_logs").exists(), "nothing is left behind"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_on_a_full_disk_is_no_second_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as stopped:
            main(["compare", f"--config={CONFIGS / 'compare_embedded.yaml'}", "--dry-run"])  # it says what it checks
        output.flush()  # as Python does at the end
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_recipe_for_a_gpu_says_what_runs_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={CONFIGS / 'gspo.yaml'}"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: trainer.accelerator is gpu, which this machine does not have (No supported gpu backend found!). On a "
        "CPU, add --config embedded to run the embedded default, or --trainer.accelerator cpu"
    )


def test_a_policy_that_does_not_fit_its_tokenizer_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_policy(tmp_path / "policy", vocabulary=96)
    for template, message in (
        (
            "{{ messages.none.x }}",
            r"model\.policy: the chat template of '.*' fails \('list object' has no attribute 'none'\)",
        ),
        (
            None,
            r"model\.policy: the tokenizer of '.*' makes the token 4\d\d \('.+'\), beyond the model's embedding of 96 ",
        ),
    ):
        tokenizer = load_tokenizer("embedded")
        tokenizer.chat_template = template or tokenizer.chat_template
        tokenizer.save_pretrained(folder)
        with pytest.raises(SystemExit):
            main(tiny_run(folder, tmp_path))
        assert re.search(message, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["fit", "--model.loss.help=GSPO"],
            ["the geometric mean of its tokens', clipped as one", "--model.loss.clip_low", "default: 0.0003"],
        ),
        (
            ["fit", "--help"],
            [
                "command line's default is GSPO",
                "--model.group_size",
                "completions per prompt",
                "--data.max_rollouts",
                "training budget",
            ],
        ),
        (["--help"], ["fit", "validate", "test", "predict"]),
    ],
)
def test_help(arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in expected:
        assert text in shown


def test_fit_logs_what_it_says_it_logs(run: Path) -> None:
    tags = set(read_scalars(run))
    train = {"reward", "reward/digit_share", "reward_std", "accuracy", "zero_variance_groups", "kl", "ratio_mean"}
    train |= {"ratio_max", "clip_fraction_low", "clip_fraction_high", "entropy", "grad_norm", "tokens_mean"}
    train |= {"truncated_rate", "lr", "epoch"}
    evaluation = {"accuracy", "accuracy_flexible", "format_rate", "mean_tokens", "truncated_rate"}
    expected = {f"train/{name}" for name in train} | {f"{s}/{name}" for s in ("val", "test") for name in evaluation}
    expected |= {"train/logprob_mismatch", "train/logprob_mismatch_max"}
    assert tags == expected | {"wall/rollout_s", "wall/reward_s", "wall/update_s", "wall/tokens_per_s"}
    assert has_samples(run)


def test_rollouts_that_are_named_are_evaluated_too(policy: str, tmp_path: Path) -> None:
    main(tiny_run(policy, tmp_path, **{"evaluate.also_after": [1, 4], "trainer.val_check_interval": 3}))
    assert list(read_scalars(tmp_path / "run" / "version_0")["val/accuracy"]) == [0, 1, 3, 4, 6]


def test_a_rollout_that_is_none_cannot_be_evaluated_after(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(tiny_run(policy, tmp_path, **{"evaluate.also_after": [0]}))
    assert "evaluate.also_after is 0; it must be at least 1" in capsys.readouterr().err


def test_tensorboard_lists_hyperparameters_beside_accuracies_and_charts_what_was_logged(run: Path) -> None:
    values, metrics = hparams_of(run)
    shown = {name: values[name] for name in ("objective", "seed", "group_size", "max_rollouts", "optimizer", "lr")}
    assert shown == {
        "objective": "GSPO",
        "seed": 0,
        "group_size": 4,
        "max_rollouts": 6,
        "optimizer": "AdamW",
        "lr": 1e-3,
    }
    assert "rollout_slots" not in values
    charts = charts_of(run)
    assert [category for category, _ in charts] == ["Accuracy", "Completions", "Update", "Seconds"]
    logged = set(read_scalars(run))
    assert set(metrics) <= logged
    assert {tag for _, tags in charts for tag in tags} - {f"^{tag}$" for tag in logged} == {"^train/kl_ref$"}, (
        "beta is 0"
    )


def test_the_exported_model_is_the_best_checkpoint(run: Path) -> None:
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    exported = AutoModelForCausalLM.from_pretrained(run / "best_model")
    for name, weight in exported.state_dict().items():
        torch.testing.assert_close(weight, best[f"policy.{name}"], rtol=0, atol=0)


def test_the_exported_model_says_what_it_is_and_how_it_is_loaded(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = ModelCard.load(run / "best_model" / "README.md")
    tokens = last_state(run)["completion_tokens"]
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reinforcement-learning", "rlvr", "gspo"],
    }
    for row in (
        "| objective | GSPO: clip_low 0.0003, clip_high 0.0004, beta 0.0, advantage_eps 0.0001 |",
        "| rewards | 1 × digit_share |",
        f"| budget | 6 rollouts, 192 completions, {tokens:,} completion tokens, 12 optimizer steps |",
        "| test | 6 | strict (in the tags) | 0.0% [0.0, 39.0] | 0.0% [0.0, 39.0] |",
    ):
        assert row in card.text.splitlines()
    (program,) = re.findall(r"```python\n(.*?)\n```", card.text, flags=re.DOTALL)
    assert len(program.splitlines()) == 5
    exec(program, {})
    printed = capsys.readouterr().out
    question = json.loads(re.findall(r'"content": (".*?")', program)[0])
    main(["chat", "--model", str(run / "best_model"), "--max_tokens=10", f"--question={question}"])
    assert visible(printed).strip() == capsys.readouterr().out.partition("\n[ended after 10 tokens")[0].strip()


@pytest.mark.parametrize("checkpoint", ["best", "last", "{run}", "{run}/checkpoints/best.ckpt"])
def test_chat_answers_as_the_evaluation_did(checkpoint: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--run_dir", str(run)] if checkpoint in ("best", "last") else []
    row = next(iter(EmbeddedProblems(train_size=22, test_size=6)("test") or ()))
    main(["chat", "--ckpt", checkpoint.format(run=run), *where, "--question", row["question"]])
    records = read_records(records_path(run, "test", best_rollout(run) if "best" in checkpoint else 6))
    assert capsys.readouterr().out.partition("\n[ended after 10 tokens")[0] == visible(records[0]["completion"])


def test_the_prompt_can_be_configured(tmp_path: Path) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("data: {few_shot: [{question: 1 + 1 = ?, answer: <answer>2</answer>}]}")
    settings = resolve(["fit", f"--config={QUICKSTART}", f"--config={file}"])
    assert settings["data.few_shot"] == [{"question": "1 + 1 = ?", "answer": "<answer>2</answer>"}]
    settings = resolve(["fit", f"--config={QUICKSTART}", "--data.few_shot=4", "--data.plain_format=Q: {question}\nA:"])
    assert settings["data.few_shot"] == 4
    assert settings["data.plain_format"] == "Q: {question}\nA:"
    assert resolve(["fit", f"--config={QUICKSTART}"])["data.few_shot"] is None


def test_a_second_run_loses_nothing_of_the_first(
    policy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It says a line a rollout where its output is no terminal, and nothing about the trainer's epochs."""
    arguments = tiny_run(policy, tmp_path, **{"data.max_rollouts": 1, "trainer.enable_progress_bar": "true"})
    main(arguments)
    captured = capfd.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "val after 0 rollouts: accuracy 0.0%"
    assert re.fullmatch(r"rollout 1/1: reward \d\.\d{3}, accuracy 0\.0%, \d+\.\d s", lines[1])
    assert lines[2] == "val after 1 rollouts: accuracy 0.0%"
    assert "\r" not in captured.out
    assert "max_epochs" not in captured.out + captured.err
    first = {f: f.read_bytes() for f in (tmp_path / "run" / "version_0").rglob("*") if f.is_file()}
    main(arguments)
    assert {f.name for f in (tmp_path / "run").iterdir()} == {"version_0", "version_1"}
    assert all(file.read_bytes() == content for file, content in first.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"version_0 is finished, with 6 rollouts; raise data\.max_rollouts above that"),
        ({"model.loss": "GRPO"}, r"last\.ckpt is of another run: model\.loss is GRPO and was GSPO"),
        ({"seed_everything": 1}, r"seed_everything is 1 and was 0"),
        ({"data.system_prompt": "Rhyme."}, r"data\.system_prompt is 'Rhyme\.' and was 'Reason step by step in"),
        ({"model.optimizer": "torch.optim.SGD"}, r"holds the moments of torch\.optim\.adamw\.AdamW"),
        (
            {"model.policy": "embedded", "resume_point.allow_changes": "true"},
            r"weights of another architecture than model\.policy 'embedded': \S+ is \(.*\) there and \(.*\) here",
        ),
        ({"trainer.logger.version": 0, "lock": True}, r"another process is at work in .*version_0"),
    ],
)
def test_what_cannot_go_on_is_refused_and_left_as_it_is(
    changes: dict[str, Any], message: str, run: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    lock = try_lock(run / "run.lock") if changes.pop("lock", False) else None
    budget = {"data.max_rollouts": 7} if changes else {}
    with pytest.raises(SystemExit) as stopped:
        main([*tiny_run(policy, run.parents[1], report_test="true", **budget, **changes), "--ckpt_path=last"])
    if lock is not None:
        os.close(lock)
    assert stopped.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert re.search(message, error)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("split", ["validate", "test"])
def test_validate_and_test_repeat_what_fit_measured(run: Path, policy: str, split: str, tmp_path: Path) -> None:
    fit = tiny_run(policy, tmp_path)[1:]
    main([split, *fit, f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"])
    stage = {"validate": "val", "test": "test"}[split]
    (again,) = (tmp_path / "run" / "version_0" / "evaluations").glob(f"{stage}-*.jsonl")
    assert again.read_text() == (run / "evaluations" / again.name).read_text()


def test_predict_writes_every_test_question(
    run: Path, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table and the place of the records; an objective need not be named, and the checkpoint is another run's."""
    arguments = [a for a in tiny_run(policy, tmp_path)[1:] if not a.startswith("--model.loss")]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        main(["predict", *arguments, f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"])
    (file,) = (tmp_path / "run" / "version_0" / "evaluations").glob("predict-*.jsonl")
    assert [r["question"] for r in read_records(file)] == list(range(6))
    shown = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "strict (in the tags) 6 0.0% 0.0% to 39.0%" in shown
    assert f"records: {file}" in shown


def test_a_run_can_be_repeated_from_its_own_config(policy: str, tmp_path: Path) -> None:
    """Also where the source is a bare name, which must not be saved as something else."""
    small = {"data.source": "embedded", "data.max_rollouts": 1}
    arguments = tiny_run(policy, tmp_path / "first", **small)
    main([a for a in arguments if not a.startswith("--data.source.")])
    first = tmp_path / "first" / "run" / "version_0"
    main(["fit", f"--config={first / 'config.yaml'}", f"--trainer.logger.init_args.save_dir={tmp_path / 'again'}"])
    again = tmp_path / "again" / "run" / "version_0"
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (first, again)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
