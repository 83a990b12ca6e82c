"""A run without the command line: a trainer, a module, a data module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from rlvr_pl import ConfigError, GroupPolicyModule, GSM8KDataModule, RewardTerm
from rlvr_pl.data import EmbeddedProblems
from rlvr_pl.losses import GSPO
from rlvr_pl.main import main
from rlvr_pl.pretrained import load_tokenizer
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import digit_share, last_state, tiny_run

pytestmark = pytest.mark.filterwarnings("ignore:.max_epochs. was not set", "ignore:.*does not have many workers")


def trainer_of(folder: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **quiet, **settings)


def module_of(policy: str) -> GroupPolicyModule:
    small = {"group_size": 4, "max_completion_tokens": 4, "minibatches_per_rollout": 1}
    return GroupPolicyModule(policy, GSPO(), rewards=[RewardTerm(digit_share)], **small)  # type: ignore[arg-type]


def data_of(**settings: Any) -> GSM8KDataModule:
    source = EmbeddedProblems(train_size=10, test_size=2)
    return GSM8KDataModule(source, val_size=2, prompts_per_rollout=2, max_rollouts=2, **settings)


@pytest.fixture(scope="module")
def policy_with_a_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny policy whose prompts look like nobody else's."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = load_tokenizer("embedded")
    tokenizer.chat_template = "{{ messages[-1]['content'] }} ->"
    tokenizer.save_pretrained(folder / "tokenizer")
    return make_tiny_policy(folder / "model", folder / "tokenizer")


def test_budget_tokenizer_and_seed_are_right_by_default(
    policy_with_a_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # given back after the test
    seed_everything(5)
    trainer, module, data = trainer_of(tmp_path), module_of(policy_with_a_template), data_of()
    trainer.fit(module, data)
    assert (module.rollouts_done, trainer.global_step, trainer.current_epoch) == (2, 2, 1)
    assert all(q.prompt == f"{q.question} ->" for split in data.questions.values() for q in split)
    assert (module.seed, module.hparams["seed"], data.seed) == (5, 5, 5)

    (checkpoint,) = tmp_path.rglob("*.ckpt")
    message = (
        f"a checkpoint holds no objective; name it again: GroupPolicyModule.load_from_checkpoint({str(checkpoint)!r}"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        GroupPolicyModule.load_from_checkpoint(checkpoint)
    seed_everything(6)
    loaded = GroupPolicyModule.load_from_checkpoint(checkpoint, loss=GSPO())
    assert (loaded.rollouts_done, loaded.seed, loaded.group_size) == (2, 5, 4)
    for name, weight in module.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], weight), name


def test_a_checkpoint_of_the_command_line_is_loaded_too(policy: str, tmp_path: Path) -> None:
    main(tiny_run(policy, tmp_path, **{"data.max_rollouts": 1, "seed_everything": 3}))
    run = tmp_path / "run" / "version_0"
    loaded = GroupPolicyModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", loss=GSPO())
    assert (loaded.rollouts_done, loaded.seed, loaded.group_size) == (1, 3, 4)
    for name, weight in last_state(run)["state_dict"].items():
        assert torch.equal(loaded.state_dict()[name], weight), name


@pytest.mark.parametrize(("settings", "found"), [({"max_epochs": 3}, (3, -1)), ({"max_steps": 8}, (-1, 8))])
def test_another_budget_than_rollouts_is_refused(
    settings: dict[str, int], found: tuple[int, int], policy: str, tmp_path: Path
) -> None:
    message = "the trainer has max_epochs {} and max_steps {}; the budget is counted in rollouts".format(*found)
    module = module_of(policy)
    with pytest.raises(ConfigError, match=message):
        trainer_of(tmp_path, **settings).fit(module, data_of())
    assert not hasattr(module, "policy"), "before any weight is loaded"


def test_a_tokenizer_is_named_or_taken_from_the_policy() -> None:
    with pytest.raises(ConfigError, match=r"^data\.tokenizer is not given, and there is no policy to take it from"):
        data_of().setup()


def test_without_seed_everything_the_seed_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert (module_of("embedded").seed, data_of().seed) == (0, 0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert (module_of("embedded").seed, data_of().seed, data_of(seed=1).seed) == (7, 7, 1)
