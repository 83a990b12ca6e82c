"""How much there is to do, and how long it will take."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from rlvr_pl.compare.plan import Run
from rlvr_pl.compare.progress import Costs, LiveTable, Row, Workload, duration, estimate, total_seconds
from rlvr_pl.run.state import RunState


def test_the_workload_counts_what_fit_does() -> None:
    config = {
        "data.max_rollouts": 10,
        "data.prompts_per_rollout": 16,
        "model.group_size": 4,
        "model.minibatches_per_rollout": 4,
        "model.epochs_per_rollout": 2,
        "trainer.val_check_interval": 4,
        "report_test": True,
    }
    load = Workload.of(config)
    assert (load.rollouts, load.samples, load.optimizer_steps) == (10, 640, 80)
    assert [load.evaluations_after(done) for done in (0, 3, 4, 8, 9, 10)] == [3, 3, 2, 1, 1, 0]
    assert Workload.of({**config, "trainer.val_check_interval": 5}).evaluations_after(0) == 2
    early = Workload.of({**config, "evaluate.also_after": [1, 2, 4, 99]})
    assert [early.evaluations_after(n) - load.evaluations_after(n) for n in (0, 1, 2, 4)] == [2, 1, 0, 0]
    costs = Costs(rollout=2.0, val=3.0, test=5.0)
    assert load.seconds_after(8, costs) == 2 * 2 + 3 + 2 * 5
    assert load.seconds(costs) == (3 + 5) + 10 * 2 + 3 * 3 + 2 * 5
    assert Workload.of({**config, "report_test": False}).seconds(costs) == 3 + 10 * 2 + 3 * 3


def test_time_left_comes_from_the_run_or_its_arm_or_any(tmp_path: Path) -> None:
    load = Workload(rollouts=10, samples=0, optimizer_steps=0, val_interval=10, tests=False)
    a0, a1, b0 = (Run(arm, seed, tmp_path) for arm, seed in (("A", 0), ("A", 1), ("B", 0)))
    started = RunState(rollouts_done=4, train_seconds=8.0, evaluation_seconds={"val": 1.0})
    faster = RunState(rollouts_done=10, train_seconds=10.0, evaluation_seconds={"val": 1.0})
    waiting = [row.seconds_left for row in estimate([Row(a0, "waiting", load), Row(b0, "waiting", load)])]
    assert waiting == [None, None]
    assert total_seconds([Row(a0, "waiting", load)], 1) is None
    rows = estimate([Row(a0, "training", load, started), Row(a1, "waiting", load), Row(b0, "finished", load, faster)])
    assert [row.seconds_left for row in rows] == [6 * 2 + 1, 1 + 10 * 2 + 1, 0]
    assert total_seconds(rows, processes=1) == 35
    assert total_seconds(rows, processes=4) == 22, "no sooner than the longest of them"
    rows = estimate([Row(a0, "training", load, started), Row(b0, "finished", load, faster), Row(b0, "waiting", load)])
    assert rows[2].seconds_left == 1 + 10 * 1 + 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (41.6, "42 s"), (245, "4 min 05 s"), (59.7, "1 min 00 s"), (11225, "3 h 07 min")]
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_the_live_table_has_a_row_a_run(tmp_path: Path) -> None:
    load = Workload(rollouts=24, samples=0, optimizer_steps=0, val_interval=12, tests=True)
    state = RunState(state="training", rollouts_done=6, max_rollouts=24, train_seconds=15.0, val_accuracy=0.25)
    console = Console(force_terminal=True, width=100, record=True, color_system=None)
    training = Row(Run("GSPO", 0, tmp_path), "training", load, state, 47.0)
    waiting = Row(Run("GRPO", 1, tmp_path), "waiting", load)
    with LiveTable(console) as live:
        live.show([training, waiting], total=120.0)
    lines = console.export_text().splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert ["GSPO", "0", "training", "6/24", "25", "2.50", "47 s", "25.0%"] in cells
    assert ["GRPO", "1", "waiting", "0/24", "0", "–", "–", "–"] in cells
    assert "0 of 2 runs finished; time left: 2 min 00 s" in lines
