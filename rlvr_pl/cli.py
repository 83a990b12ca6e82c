"""The command line: LightningCLI, with the baseline, the resume and the summary around ``fit``."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from rlvr_pl.callbacks import LastRolloutIsEvaluated, ResumePoint, RolloutProgressBar, SampleCompletions
from rlvr_pl.data import GSM8KDataModule
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.run import BEST_MODEL, find_checkpoint, next_config_path
from rlvr_pl.summary import print_summary
from rlvr_pl.types import ConfigError


class OneLineErrorParser(LightningArgumentParser):
    """Says what is wrong in one line, without the usage text around it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(" ".join(message.split())) from ex


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration next to the logs; a resumed run adds a file and overwrites none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or trainer.state.fn != "fit":
            return
        self.already_saved = True
        if trainer.is_global_zero and trainer.log_dir is not None:
            path = next_config_path(trainer.log_dir)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, path, skip_none=False)


def best_checkpoint() -> ModelCheckpoint:
    """Keeps ``checkpoints/best.ckpt``, the best by ``val/accuracy``."""
    return ModelCheckpoint(
        monitor="val/accuracy",
        mode="max",
        filename="best",
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
            save_config_callback=RunConfig,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": 1,  # an epoch of the trainer is the whole run of data.max_rollouts
                "check_val_every_n_epoch": None,  # so that val_check_interval may exceed a short run
                "val_check_interval": 20,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "inference_mode": False,  # autocast caches its weight casts under no_grad only
                "enable_model_summary": False,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": {"save_dir": "lightning_logs", "name": "run", "default_hp_metric": False},
                },
                # Lightning moves checkpoint callbacks behind the others and keeps their order: the resume point holds
                # the state of the best checkpoint's callback, so it comes after it.
                "callbacks": [RolloutProgressBar(), LastRolloutIsEvaluated(), best_checkpoint()],
            },
        )

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
        if config.get("ckpt_path") is None:
            return
        logger = config.trainer.logger
        settings = logger.init_args if hasattr(logger, "init_args") else {}
        runs = Path(settings.get("save_dir") or "lightning_logs", settings.get("name") or "")
        checkpoint = find_checkpoint(config.ckpt_path, runs)
        if config.ckpt_path == "last" and self.subcommand == "fit":
            settings["version"] = checkpoint.parents[1].name  # the resumed run goes on in its own folder
        config.ckpt_path = str(checkpoint)

    # Around fit

    def before_fit(self) -> None:
        self._seconds = time.perf_counter()
        self.model.check_division(self.datamodule.prompts_per_rollout, self.trainer.world_size)
        if self.config.fit.ckpt_path is None:
            self.trainer.validate(self.model, self.datamodule, verbose=False)
            if self.config.fit.report_test:
                self.trainer.test(self.model, self.datamodule, verbose=False)

    def after_fit(self) -> None:
        best = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)).best_model_path
        if not best:
            return
        tokens, rollouts = self.model.completion_tokens, self.model.rollouts_done
        if self.config.fit.report_test:
            self.trainer.test(self.model, self.datamodule, ckpt_path=best, verbose=False)
        else:
            state = torch.load(best, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["state_dict"])
            self.model.on_load_checkpoint(state)
        if not self.trainer.is_global_zero or self.trainer.log_dir is None:
            return
        log_dir = Path(self.trainer.log_dir)
        self.model.policy.save_pretrained(log_dir / BEST_MODEL)
        self.model.tokenizer.save_pretrained(log_dir / BEST_MODEL)
        print_summary(
            log_dir,
            objective=type(self.model.loss).__name__,
            best_rollout=self.model.rollouts_done,
            seconds=time.perf_counter() - self._seconds,
            rollouts=rollouts,
            tokens=tokens,
        )


def main(args: list[str] | None = None) -> None:
    """Run the command line; what the user can mend ends in one line on standard error and exit status 2."""
    warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device`")
    try:
        RLVRCommandLine(args)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
