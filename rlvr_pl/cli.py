"""The command line: LightningCLI, with the baseline, the resume and the summary around ``fit``."""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from rlvr_pl.callbacks import Interrupted, LastRolloutIsEvaluated, ResumePoint, RolloutProgressBar, SampleCompletions
from rlvr_pl.data import GSM8KDataModule
from rlvr_pl.losses import LossStrategy
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.pretrained import load_config
from rlvr_pl.run import BEST, BEST_MODEL, find_checkpoint, next_config_path
from rlvr_pl.run_state import RecordRunState
from rlvr_pl.summary import print_summary
from rlvr_pl.types import ConfigError

PROGRAM = "python -m rlvr_pl"
# Subcommands that are no method of a trainer, in rlvr_pl.compare.
COMPARE_COMMANDS = {
    "compare": "Run arms × seeds under one budget, go on with them, and write the report.",
    "report": "Write the report of a folder of runs, finished or not.",
}


class OneLineErrorParser(LightningArgumentParser):
    """Says what is wrong, and what to do about it, in one line without the usage text around it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # a key cut short is a typo, not another key

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.subcommands = super().add_subcommands(*args, **kwargs)
        return self.subcommands

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split()).removesuffix(" See --help").removesuffix(".")
        raise ConfigError(f"{message}. {self._remedy(message)}") from ex

    def _remedy(self, message: str) -> str:
        if 'Parser key "model.loss"' in message and "import path" in message:
            names = sorted(subclass.__name__ for subclass in LossStrategy.__subclasses__())
            return f"Choose from {', '.join(names)}, or give the class path of an objective of your own"
        if 'Parser key "model.loss"' in message and "not accepted" in message:
            return "See --model.loss.help followed by the objective's name"
        unknown = re.search(r"(?:option:?|arguments:) '?(?:--)?([\w.]+)", message)
        if unknown:
            known = {action.dest.rpartition(".")[2]: action.dest for action in self._all_actions()}
            close = difflib.get_close_matches(unknown[1].rpartition(".")[2], known, n=1)
            if close:
                return f"Did you mean {known[close[0]]}? See --help"
        return "See --help"

    def _all_actions(self) -> Iterator[argparse.Action]:
        """The actions of this parser and of its subcommands."""
        for action in self._actions:
            yield action
            for parser in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
                yield from parser._actions


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration next to the logs; a resumed run adds a file and overwrites none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or trainer.state.fn != "fit":
            return
        self.already_saved = True
        log_dir = trainer.log_dir  # a collective: every rank must ask
        if trainer.is_global_zero and log_dir is not None:
            path = next_config_path(log_dir)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, path, skip_none=False)


def best_checkpoint() -> ModelCheckpoint:
    """Keeps ``checkpoints/best.ckpt``, the best by ``val/accuracy``."""
    return ModelCheckpoint(
        monitor="val/accuracy",
        mode="max",
        filename=Path(BEST).stem,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


class RLVRCommandLine(LightningCLI):
    """``fit`` evaluates the untrained policy first and the best one last; flags always beat a checkpoint's values."""

    model: GroupPolicyModule
    datamodule: GSM8KDataModule

    def __init__(self, args: list[str] | None = None) -> None:
        self._seconds = 0.0
        super().__init__(
            GroupPolicyModule,
            GSM8KDataModule,
            args=args,
            parser_class=OneLineErrorParser,
            parser_kwargs={
                "prog": PROGRAM,
                "description": "Train language models by reinforcement learning with verifiable rewards.",
                **{
                    name: {"usage": f"{PROGRAM} {name} [--config FILE ...] [--KEY VALUE ...]"}
                    for name in self.subcommands()
                },
            },
            save_config_callback=RunConfig,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": 1,  # an epoch of the trainer is the whole run of data.max_rollouts
                "check_val_every_n_epoch": None,  # so that val_check_interval may exceed a short run
                "val_check_interval": 20,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "inference_mode": False,  # under it, autocast keeps no casts of the weights from one token to the next
                "enable_model_summary": False,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": {"save_dir": "lightning_logs", "name": "run", "default_hp_metric": False},
                },
                "callbacks": [LastRolloutIsEvaluated(), best_checkpoint()],
            },
        )

    def setup_parser(self, add_subcommands: bool, *args: Any, **kwargs: Any) -> None:
        """List the other subcommands with LightningCLI's; ``main`` takes them to parsers of their own."""
        super().setup_parser(add_subcommands, *args, **kwargs)
        for name, description in COMPARE_COMMANDS.items():
            self.parser.subcommands.add_subcommand(name, OneLineErrorParser(), help=description)  # type: ignore[attr-defined]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.policy", "data.tokenizer")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.add_lightning_class_args(ResumePoint, "resume_point")
        parser.add_lightning_class_args(SampleCompletions, "samples")
        parser.add_argument(
            "--report_test",
            type=bool,
            default=True,
            help="fit: evaluate the test split before training, and with the best checkpoint after it",
        )

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters beat the flags; here the flags and files are the run."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if str(config.trainer.precision) in ("16", "16-mixed"):
            raise ConfigError("trainer.precision is 16-mixed, whose loss scaling is not supported; use bf16-mixed")
        if config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(RolloutProgressBar())
        if self.subcommand == "fit":
            self._run_state = RecordRunState()
            self.trainer_defaults["callbacks"].append(self._run_state)
        if config.get("ckpt_path") is None:
            return
        logger = config.trainer.logger
        settings = logger.init_args if hasattr(logger, "init_args") else {}
        runs = Path(settings.get("save_dir") or "lightning_logs", settings.get("name") or "")
        checkpoint = find_checkpoint(config.ckpt_path, runs)
        if config.ckpt_path == "last" and self.subcommand == "fit":
            settings["version"] = checkpoint.parents[1].name  # the resumed run goes on in its own folder
        config.ckpt_path = str(checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The resume point holds the state of the best checkpoint's callback, so it comes after it."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.sort(key=lambda c: isinstance(c, ResumePoint))  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Refuse what cannot run before the trainer makes a folder for it or loads any weight."""
        if self.subcommand == "fit":
            self.model.check_division(self.datamodule.prompts_per_rollout, self.trainer.world_size)
        load_config(self.model.policy_name)
        self.datamodule.setup()
        questions = (q for split in self.datamodule.questions.values() for q in split)
        self.model.check_length(longest_prompt=max(len(q.prompt_ids) for q in questions))

    # Around fit

    def before_fit(self) -> None:
        self._seconds = time.perf_counter()
        if self.config.fit.ckpt_path is None:
            self.trainer.validate(self.model, self.datamodule, verbose=False)
            if self.config.fit.report_test:
                self.trainer.test(self.model, self.datamodule, verbose=False)

    def after_fit(self) -> None:
        best = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)).best_model_path
        if not best:
            self._run_state.finish(best_rollout=None)
            return
        tokens, rollouts = self.model.completion_tokens, self.model.rollouts_done
        if self.config.fit.report_test:
            self.trainer.test(self.model, self.datamodule, ckpt_path=best, verbose=False)
        else:
            state = torch.load(best, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["state_dict"])
            self.model.on_load_checkpoint(state)
        run = self.trainer.log_dir  # a collective: every rank must ask
        if not self.trainer.is_global_zero or run is None:
            return
        log_dir = Path(run)
        self.model.policy.save_pretrained(log_dir / BEST_MODEL)
        self.model.tokenizer.save_pretrained(log_dir / BEST_MODEL)
        self._run_state.finish(best_rollout=self.model.rollouts_done)
        print_summary(
            log_dir,
            objective=type(self.model.loss).__name__,
            best_rollout=self.model.rollouts_done,
            seconds=time.perf_counter() - self._seconds,
            rollouts=rollouts,
            tokens=tokens,
        )


def _quieten() -> None:
    """Leave out what libraries say that a user can do nothing about."""
    warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device`")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )


def main(args: list[str] | None = None) -> None:
    """Run the command line; what the user can mend ends in one line on standard error and exit status 2."""
    _quieten()
    arguments = sys.argv[1:] if args is None else args
    try:
        if arguments[:1] and arguments[0] in COMPARE_COMMANDS:
            from rlvr_pl.compare.command import run_command  # stands on this file, and loads what only it needs

            run_command(arguments)
        else:
            RLVRCommandLine(args)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except Interrupted as interrupt:
        sys.stderr.write(f"{interrupt}\n")
        sys.exit(130)
