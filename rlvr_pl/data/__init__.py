"""Problems, prompts and their order."""

from rlvr_pl.data.datamodule import GSM8KDataModule
from rlvr_pl.data.sources import DataSource, EmbeddedProblems, HubDataset, LocalDataset

__all__ = ["DataSource", "EmbeddedProblems", "GSM8KDataModule", "HubDataset", "LocalDataset"]
