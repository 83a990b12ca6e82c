"""The command line: LightningCLI, with the baseline, the resume and the summary around ``fit``.

``RLVRCommandLine`` runs a subcommand of Lightning's; ``resolve`` says what ``fit`` would run with, without running it.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from rlvr_pl.config_files import expand_bases
from rlvr_pl.data import GSM8KDataModule
from rlvr_pl.data.prompts import saved_prompt
from rlvr_pl.lightning_settings import check_settings, check_writable, explain
from rlvr_pl.lora import check_targets
from rlvr_pl.losses import LossStrategy
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.preflight import check_division, check_factories, check_length, check_sharding, check_vocabulary
from rlvr_pl.pretrained import load_config
from rlvr_pl.run.checkpoint_files import (
    VERIFIER,
    WholeFileCheckpoints,
    check_same_run,
    read_checkpoint,
)
from rlvr_pl.run.checkpoints import Evaluate, ResumePoint, best_checkpoint
from rlvr_pl.run.configuration import Flat, flatten, read_config, settings_of
from rlvr_pl.run.display import make_progress_bar
from rlvr_pl.run.ending import explained
from rlvr_pl.run.environment import is_first_rank
from rlvr_pl.run.files import whole_file, whole_folder
from rlvr_pl.run.folder import BEST_ADAPTER, BEST_MODEL, CHECKPOINTS, next_config_path, next_run
from rlvr_pl.run.lock import RunLock
from rlvr_pl.run.model_card import CARD_QUESTION, MODEL_CARD, write_model_card
from rlvr_pl.run.optimizer import check_optimizer
from rlvr_pl.run.place import Place, RunFolder, check_free, make_loggers, place_of, run_folder
from rlvr_pl.run.recorder import RecordRunState
from rlvr_pl.run.records import records_path
from rlvr_pl.run.resume import choose_checkpoint
from rlvr_pl.run.summary import print_evaluation, print_summary
from rlvr_pl.run.tensorboard import Overview, SampleCompletions
from rlvr_pl.types import ConfigError
from rlvr_pl.verifiers import Number

PROGRAM = "rlvr_pl" if Path(sys.argv[0]).stem == "rlvr_pl" else "python -m rlvr_pl"  # how this process was started
DEFAULT_LOSS = "GSPO"
_CANNOT_BE_MADE = (MisconfigurationException, ValueError, ImportError, RuntimeError, TypeError, OSError)
# Subcommands that are no method of a trainer, and have parsers of their own.
OTHER_COMMANDS = {
    "chat": "Answer questions in the terminal, by a run's checkpoint or by any model.",
    "plan": "Say what a run needs before it has a GPU: memory, disk, arithmetic, time.",
    "compare": "Run arms × seeds under one budget, go on with them, and write the report.",
    "report": "Write the report of a folder of runs, finished or not.",
}


class CommandParser(argparse.ArgumentParser):
    """The parser of one of ``OTHER_COMMANDS``, which says in one line what is wrong."""

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"{PROGRAM} {command}", description=OTHER_COMMANDS[command], allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message}. See {self.prog} --help")


class OneLineErrorParser(LightningArgumentParser):
    """Says what is wrong, and what to do about it, in one line without the usage text around it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # a key cut short is a typo, not another key

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.subcommands = super().add_subcommands(*args, **kwargs)
        return self.subcommands

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split()).removesuffix(" See --help").removesuffix(".")
        if scheduler := re.match(r'Parser key "model\.lr_scheduler":.* Given value: (.+)$', message):
            raise ConfigError(
                f"model.lr_scheduler: {scheduler[1]} is neither the class path of a scheduler nor a function whose "
                "annotations say that it makes one: (optimizer: torch.optim.Optimizer) -> "
                "torch.optim.lr_scheduler.LRScheduler"
            ) from ex
        raise ConfigError(f"{message}. {self._remedy(message)}") from ex

    def _remedy(self, message: str) -> str:
        if 'Parser key "model.loss"' in message and "import path" in message:
            names = sorted({subclass.__name__ for subclass in LossStrategy.__subclasses__()})
            return f"Choose from {', '.join(names)}, or give the class path of an objective of your own"
        if 'Parser key "model.loss"' in message and "not accepted" in message:
            return "See --model.loss.help followed by the objective's name"
        if 'Parser key "model.lora"' in message:
            return "See --model.lora.help"
        unknown = re.search(r"(?:option:?|arguments:) '?(?:--)?([\w.]+)", message)
        if unknown and unknown[1].removeprefix("model.") in signature(torch.optim.AdamW).parameters:
            return f"Did you mean model.optimizer.{unknown[1].removeprefix('model.')}? See --help"
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


class SaveWholeConfig(SaveConfigCallback):
    """Writes the whole configuration next to the logs; a resumed run adds a file and overwrites none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or trainer.state.fn != "fit":
            return
        self.already_saved = True
        folder = run_folder(trainer)
        if trainer.is_global_zero and folder is not None:
            with whole_file(next_config_path(folder)) as file:
                self.parser.save(self.config, file, skip_none=False, overwrite=True)


class RLVRCommandLine(LightningCLI):
    """``fit`` evaluates the untrained policy first and the best one last; flags always beat a checkpoint's values."""

    model: GroupPolicyModule
    datamodule: GSM8KDataModule

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self._arguments = list(sys.argv[1:] if args is None else args)
        self._lock = RunLock()
        self._run_state = RecordRunState(self._lock)
        self._checkpoint: Path | None = None
        self._place = Place(Path())  # of the configuration
        self._folder = RunFolder()
        try:
            self._set_up_and_run()
        except BaseException as error:
            explanation = explained(error, self._run_state, PROGRAM, self._arguments)
            if explanation is error:
                raise
            raise explanation from error
        finally:
            self._lock.release()

    def _set_up_and_run(self) -> None:
        super().__init__(
            GroupPolicyModule,
            GSM8KDataModule,
            args=self._with_default_loss(expand_bases(self._arguments)),
            parser_class=OneLineErrorParser,
            parser_kwargs={
                "prog": PROGRAM,
                "description": "Train language models by reinforcement learning with verifiable rewards.",
                **{
                    name: {"usage": f"{PROGRAM} {name} [--config FILE ...] [--KEY VALUE ...]"}
                    for name in self.subcommands()
                },
            },
            save_config_callback=SaveWholeConfig,
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
                "callbacks": [best_checkpoint()],
            },
        )

    def _with_default_loss(self, args: Sequence[str]) -> list[str]:
        """Name GSPO before anything else does: a parser's default would leave its clip range to what replaces it."""
        place = next((i + 1 for i, argument in enumerate(args) if argument in self.subcommands()), 0)
        return [*args[:place], f"--model.loss={DEFAULT_LOSS}", *args[place:]] if place else list(args)

    def setup_parser(self, add_subcommands: bool, *args: Any, **kwargs: Any) -> None:
        """List the other subcommands with LightningCLI's; ``main`` takes them to parsers of their own."""
        super().setup_parser(add_subcommands, *args, **kwargs)
        for name, description in OTHER_COMMANDS.items():
            self.parser.subcommands.add_subcommand(name, OneLineErrorParser(), help=description)  # type: ignore[attr-defined]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.policy", "data.tokenizer")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.add_lightning_class_args(Evaluate, "evaluate")
        parser.add_lightning_class_args(ResumePoint, "resume_point")
        parser.add_lightning_class_args(SampleCompletions, "samples")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="the run's folder; by default a new version_N in the folder that the logger's save_dir and name say",
        )
        parser.add_argument(
            "--report_test",
            type=bool,
            default=True,
            help="fit: evaluate the test split before training, and with the last and the best checkpoint after it",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuse settings that would be ignored or end the run, before anything is made of them."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        check_settings(config.seed_everything, config.trainer, self.trainer_defaults)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters beat the flags; here the flags and files are the run."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(make_progress_bar())
        if self.subcommand == "fit":
            self.trainer_defaults["callbacks"] += [self._run_state, Overview()]
        self.trainer_defaults["callbacks"].append(self._folder)
        self._place = place_of(config.run_dir, self.logger_settings())
        resumed = None
        if config.get("ckpt_path") is not None:
            budget = config.data.max_rollouts if self.subcommand == "fit" else None
            self._checkpoint, resumed = choose_checkpoint(config.ckpt_path, self._place, budget, self._lock)
            config.ckpt_path = str(self._checkpoint)
        if resumed is not None:
            self._place = Place(resumed.parent, resumed.name)
        elif config.run_dir is not None and self.subcommand == "fit":
            check_free(Path(config.run_dir))
        config.run_dir = None  # who repeats the run from its configuration wants another folder

    def logger_settings(self) -> list[dict[str, Any]]:
        """List what the configuration says of each logger; ``true`` stands for the default one."""
        loggers = self.config[self.subcommand].trainer.logger
        if loggers is None or loggers is True:
            loggers = self.trainer_defaults["logger"]
        loggers = [] if loggers is False else loggers if isinstance(loggers, list) else [loggers]
        return [logger if isinstance(logger, dict) else logger.as_dict() for logger in loggers]

    def instantiate_classes(self) -> None:
        """Make the module, the data module and the trainer; say in one line which class of the trainer's has failed."""
        trainer = self.config[self.subcommand].trainer
        loggers, trainer.logger = trainer.logger, False  # they are made when the run has a folder
        try:
            super().instantiate_classes()
        except ValueError as error:
            if isinstance(error, ConfigError) or "class_path" not in str(error):
                raise
            raise explain(error, trainer.accelerator) from error
        finally:
            trainer.logger = loggers

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put the resume point last, since it holds the state of the best checkpoint's callback; write files whole."""
        with self._explained():
            trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and none of the user's own
            trainer.strategy.checkpoint_io = WholeFileCheckpoints()
        # Lightning would end at SIGTERM with status 0, and have ranks broadcast from inside a signal handler.
        trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]
        trainer.callbacks.sort(key=lambda c: isinstance(c, ResumePoint))  # type: ignore[attr-defined]
        return trainer

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in one line why Lightning cannot make the trainer, or what belongs to it."""
        try:
            yield
        except ConfigError:
            raise
        except _CANNOT_BE_MADE as error:
            raise explain(error, self.config[self.subcommand].trainer.accelerator) from error

    def after_instantiate_classes(self) -> None:
        """Refuse what cannot run before the trainer makes a folder for it or loads any weight."""
        if self.subcommand == "fit":
            check_division(self.datamodule.prompts_per_rollout, self.model.minibatches_per_rollout, self.world_size)
            check_factories(self.model.optimizer_factory, self.model.lr_scheduler_factory)
        self.check_folders()
        self.check_data()
        if self._checkpoint is not None:
            self.check_checkpoint(self._checkpoint)
        self.settle()

    @property
    def world_size(self) -> int:
        """How many ranks train."""
        return self.trainer.world_size

    def check_folders(self) -> None:
        """Refuse a folder for the run in which nothing could be written."""
        check_writable(self._place.run or self._place.runs)

    def settle(self) -> None:
        """Choose the run's folder, and have loggers and checkpoints lie in it."""
        while self._folder.path is None:
            folder = self._place.run or next_run(self._place.runs)
            with self._explained():
                self.trainer.loggers = make_loggers(self.logger_settings(), folder)
            try:
                if is_first_rank():
                    folder.mkdir(parents=True, exist_ok=self._place.run is not None)
            except FileExistsError:  # of a run that has begun at the same time
                continue
            self._folder.path = folder
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self._folder.path / CHECKPOINTS)

    def check_data(self) -> None:
        """Load and check the data, and whether the policy has a position and an embedding for every token."""
        policy, adapter = self.model.policy_name, self.model.lora
        config = load_config(policy)
        check_sharding(self.trainer.strategy, policy, adapter=adapter is not None)
        if adapter is not None:
            check_targets(adapter, config)
        self.datamodule.reward_columns = self.model.reward_sum.columns
        self.datamodule.setup(self.subcommand)
        prompts = [q.prompt_ids for split in self.datamodule.questions.values() for q in split]
        check_length(policy, max(map(len, prompts)), self.model.sampling.max_completion_tokens)
        check_vocabulary(policy, highest_token=max(map(max, prompts)))

    def check_checkpoint(self, path: Path) -> None:
        """Check that a checkpoint is one to go on from: of this program, this policy, and for ``fit`` this run."""
        checkpoint = read_checkpoint(path)
        self.model.check_base(checkpoint)
        if self.subcommand == "fit":
            if not self.config.fit.resume_point.allow_changes:
                changes = self.datamodule.prompt_format.changes_since(saved_prompt(checkpoint))
                now, before = self.datamodule.verifier.name, checkpoint.get(VERIFIER, Number().name)
                changes += [] if now == before else [f"data.verifier is {now} and was {before}"]
                check_same_run(checkpoint, self.model.hparams, path, changes)
            check_optimizer(checkpoint, self.model.optimizer_factory, path)
        self.model.check_tensors(checkpoint, path)

    # Around fit

    def before_fit(self) -> None:
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
        state = torch.load(best, map_location="cpu", weights_only=True, mmap=True)
        best_rollout = state["rollouts_done"]
        if self.config.fit.report_test and best_rollout < rollouts:  # the policy is still the last one
            self.trainer.test(self.model, self.datamodule, verbose=False)
        if self.config.fit.report_test:
            self.trainer.test(self.model, self.datamodule, ckpt_path=best, verbose=False)
        else:
            self.model.load_state_dict(state["state_dict"])
            self.model.on_load_checkpoint(state)
        log_dir, weights = run_folder(self.trainer), self.model.exported_weights()
        if not self.trainer.is_global_zero or log_dir is None:
            return
        with whole_folder(log_dir / BEST_MODEL) as folder:
            self.model.export(folder, weights)
            self.datamodule.prompt_format.put_into(folder)
            write_model_card(
                folder / MODEL_CARD,
                run=log_dir,
                folder=log_dir / BEST_MODEL,
                config=read_config(log_dir)[0],
                state=self._run_state.state,
                rewards={term.name: term.weight for term in self.model.reward_sum.terms},
                prompt=self.datamodule.prompt_format.write(self.model.tokenizer, CARD_QUESTION),
                best_rollout=best_rollout,
                verifier=self.datamodule.verifier,
            )
        if self.model.lora is not None:
            with whole_folder(log_dir / BEST_ADAPTER) as folder:
                self.model.export_adapter(folder)
        self._run_state.finish(best_rollout=best_rollout)
        print_summary(
            log_dir,
            objective=type(self.model.loss).__name__,
            best_rollout=best_rollout,
            seconds=self._run_state.state.wall_seconds,
            rollouts=rollouts,
            tokens=tokens,
            verifier=self.datamodule.verifier,
        )

    # After an evaluation alone

    def after_validate(self) -> None:
        self.print_evaluation("val")

    def after_test(self) -> None:
        self.print_evaluation("test")

    def after_predict(self) -> None:
        self.print_evaluation("predict")

    def print_evaluation(self, stage: str) -> None:
        """Print what was found, and where its records lie."""
        folder = run_folder(self.trainer)
        if self.trainer.is_global_zero and folder is not None:
            checkpoint = self.config[self.subcommand].get("ckpt_path")
            print_evaluation(
                records_path(folder, stage, self.model.rollouts_done),
                stage,
                policy=self.model.policy_name + (f", {checkpoint}" if checkpoint else ""),
                verifier=self.datamodule.verifier,
            )


class _Rehearsal(RLVRCommandLine):
    """``fit`` up to where it would make a trainer, seed this process or load data: needs no GPU and no hub."""

    world_size = 1  # on more ranks there is more to divide by; fit itself says so

    def _set_seed(self) -> None:
        pass

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return None  # type: ignore[return-value]

    def check_folders(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def check_data(self) -> None:
        pass

    def check_checkpoint(self, path: Path) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    @property
    def place(self) -> Place:
        return self._place

    def whole_config(self) -> dict[str, Any]:
        return yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_none=False))


def resolve(arguments: Sequence[str]) -> Flat:
    """Say what ``fit`` with these arguments would run with: its whole configuration, without what belongs to one run.

    Raises:
        ConfigError: if fit would refuse it.
    """
    return settings_of(flatten(_Rehearsal(arguments).whole_config()))


def place_of_runs(arguments: Sequence[str]) -> Place:
    """Say where a command with these arguments looks for runs.

    Args:
        arguments: of an evaluation such as ``test``, since ``fit`` refuses a folder that holds a run.

    Raises:
        ConfigError: if the command would refuse them.
    """
    return _Rehearsal(arguments).place
