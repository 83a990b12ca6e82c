"""Captured decode steps: their control flow, with the capture emulated on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from rlvr_pl.rollout import LeanEngine, graphs, lean
from rlvr_pl.rollout.graphs import GraphedStep
from rlvr_pl.rollout.rows import Rows
from rlvr_pl.types import Rollout
from tests.helpers.engines import PROMPTS, STOP_IDS, assert_same, sample_with
from tests.helpers.policies import FAMILIES, tiny_model

torch.set_num_threads(1)

CPU = torch.device("cpu")
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}


class Recorder(TorchDispatchMode):
    """Notes every operation with the tensors that it reads and writes, and refuses what a capture would.

    A capture refuses what makes the host wait: a value that Python asks for, a result whose shape is not known before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        if name in ("index", "index_put_", "index_put", "_index_put_impl_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as index waits for the device"
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def is_view(func: Any, args: Any, kwargs: Any, result: Any) -> bool:
    """Whether an operation only looks at memory that it was given."""
    given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
    return not func._schema.is_mutable and all(t.untyped_storage().data_ptr() in given for t in tensors(result))


class Replay:
    """Runs a function once for real, then records it; a replay repeats the recorded operations on the same memory.

    So a replay does what a graph's does: no Python of the function runs again, what the function asked Python for is
    what it was then, and whatever tensor it read is read where it lay.
    """

    captured = 0

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        Replay.captured += 1
        function()
        with Recorder() as recorder:
            function()
        operations = [operation for operation in recorder.operations if not is_view(*operation)]

        def replay() -> None:
            for func, args, kwargs, result in operations:
                again = func(*args, **kwargs)
                if not func._schema.is_mutable:
                    for old, new in zip(tensors(result), tensors(again), strict=True):
                        old.copy_(new)

        return replay


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines take the way of a GPU."""
    Replay.captured = 0
    monkeypatch.setattr(LeanEngine, "graphed", True)
    monkeypatch.setattr(graphs, "_CudaCapture", Replay)


# Buckets


def test_buckets_of_rows() -> None:
    assert graphs._row_buckets(256) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert graphs._row_buckets(100) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 100]
    assert graphs._row_buckets(5) == [1, 2, 3, 4, 5]
    assert graphs._row_buckets(1) == [1]


def test_buckets_of_columns() -> None:
    assert graphs._column_buckets(128) == [128]
    assert graphs._column_buckets(256) == [256]
    assert graphs._column_buckets(384) == [256, 384]
    assert graphs._column_buckets(2048) == [256, 512, 1024, 2048]


# The graphed step


class Log:
    """A step and its capture, which note what happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[int, int, float]] = []
        self.captured: list[tuple[int, int, float]] = []
        monkeypatch.setattr(graphs, "_CudaCapture", lambda device: self.capture)

    def step(self, rows: int, columns: int, temperature: float) -> None:
        self.steps.append((rows, columns, temperature))

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        self.captured.append(self.steps.pop())
        return function


def test_every_bucket_that_a_call_can_need_is_captured_once_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    step = GraphedStep(log.step, slots=16, columns=640, bounded=True, device=CPU)
    step.warm_up(rows=3, columns=300, temperature=1.0)
    first = [(rows, columns, 1.0) for rows in (3, 2, 1) for columns in (512, 256)]
    assert log.captured == first
    step.warm_up(rows=2, columns=512, temperature=1.0)
    assert log.captured == first
    step.warm_up(rows=5, columns=100, temperature=1.0)
    assert log.captured == [*first, (6, 256, 1.0), (4, 256, 1.0)]
    step.warm_up(rows=1, columns=1, temperature=0.0)
    assert log.captured == [*first, (6, 256, 1.0), (4, 256, 1.0), (1, 256, 0.0)]
    assert log.steps == []


def test_a_step_replays_the_smallest_bucket_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    step = GraphedStep(log.step, slots=20, columns=640, bounded=True, device=CPU)
    step.warm_up(rows=20, columns=640, temperature=0.7)
    captured = len(log.captured)
    for rows in range(1, 21):
        for columns in (1, 256, 257, 512, 513, 640):
            step(rows, columns, 0.7)
            (bucket, column_bucket, temperature) = log.steps.pop()
            assert rows <= bucket < 1.5 * rows + 1
            assert column_bucket == (256 if columns <= 256 else 512 if columns <= 512 else 640)
            assert temperature == 0.7
    assert len(log.captured) == captured == 9 * 3


def test_without_a_bound_on_the_columns_there_is_one_bucket_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    step = GraphedStep(log.step, slots=2, columns=640, bounded=False, device=CPU)
    step.warm_up(rows=2, columns=10, temperature=1.0)
    assert log.captured == [(2, 640, 1.0), (1, 640, 1.0)]
    step(1, 300, 1.0)
    assert log.steps == [(1, 640, 1.0)]


def test_what_was_not_captured_is_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    step = GraphedStep(log.step, slots=8, columns=512, bounded=True, device=CPU)
    step.warm_up(rows=2, columns=200, temperature=1.0)
    for never in [(3, 200, 1.0), (2, 300, 1.0), (2, 200, 0.0)]:
        with pytest.raises(KeyError):
            step(*never)


# The engine


CALLS: list[dict[str, Any]] = [
    {"group_size": 5, "tokens": 14},
    {"group_size": 5, "tokens": 14, "temperature": 0.0},
    {"group_size": 1, "tokens": 20, "temperature": 0.7},
    {"group_size": 2, "tokens": 1},
    {"prompts": [[3] * 20, *PROMPTS], "group_size": 3, "tokens": 25, "temperature": 2.0},
]


@pytest.fixture(scope="module")
def eager() -> dict[tuple[str, int], Rollout]:
    """Each call by each family, without graphs."""
    return {
        (family, i): sample_with(LeanEngine, tiny_model(family, seed=2), **call)
        for family in FAMILIES
        for i, call in enumerate(CALLS)
    }


@pytest.mark.usefixtures("eager", "graphed")
@pytest.mark.parametrize(
    ("family", "slots", "unseen"),
    [
        ("qwen2", 1, 8),
        ("qwen3", 3, 1),
        ("llama", 3, 3),
        ("qwen3", 3, 8),
        ("qwen2", 7, 3),
        ("llama", 64, 1),
        ("qwen3", 64, 8),
    ],
)
def test_replayed_steps_give_the_tokens_of_eager_ones(
    family: str, slots: int, unseen: int, eager: dict[tuple[str, int], Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the host looks."""
    monkeypatch.setattr(lean, "_STEPS_UNSEEN", unseen)
    engine = LeanEngine(tiny_model(family, seed=2), STOP_IDS, 0, slots)
    for i, call in enumerate(CALLS):
        assert_same(sample_with(engine, engine.policy, **call), eager[family, i])


@pytest.mark.usefixtures("graphed")
def test_the_host_looks_every_few_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LeanEngine(tiny_model(), [], 0)
    step, retire, events = GraphedStep.__call__, Rows.retire, []
    monkeypatch.setattr(GraphedStep, "__call__", lambda *args: events.append("step") or step(*args))
    monkeypatch.setattr(Rows, "retire", lambda rows: events.append("look") or retire(rows))
    sample_with(engine, engine.policy, tokens=20)
    assert events == [*["step"] * 8, "look"] * 3  # 19 steps were needed


@pytest.mark.usefixtures("graphed")
def test_steps_are_captured_once_and_for_each_temperature_while_no_row_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LeanEngine(tiny_model(), STOP_IDS, 0, slots=4)
    captured = []

    class Watched(Replay):
        def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
            captured.append((engine.rows.count, bool((engine.rows.place == engine.rows.spare).all())))
            return super().__call__(function)

    monkeypatch.setattr(graphs, "_CudaCapture", Watched)
    sample_with(engine, engine.policy)
    assert captured == [(0, True)] * 4  # of 4, 3, 2 and 1 rows
    sample_with(engine, engine.policy)
    sample_with(engine, engine.policy, prompts=PROMPTS[:1])
    assert len(captured) == 4
    sample_with(engine, engine.policy, temperature=0.0)
    assert captured == [(0, True)] * 8
    sample_with(engine, engine.policy)
    assert len(captured) == 8


@pytest.mark.usefixtures("graphed")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_replays_read_the_weights_of_the_moment_and_are_dropped_when_a_weight_moves(precision: str) -> None:
    model = tiny_model("qwen3")
    engine = LeanEngine(model, STOP_IDS, 0)

    def new_engines_rollout() -> Rollout:
        """Captures too, but is not counted."""
        captured = Replay.captured
        rollout = sample_with(LeanEngine, model)
        Replay.captured = captured
        return rollout

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        sample_with(engine, model)
        assert Replay.captured == 6  # 8, 6, 4, 3, 2, 1 rows
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.7)
        assert_same(sample_with(engine, model), new_engines_rollout())
        assert Replay.captured == 6
        weight = model.model.layers[1].mlp.down_proj.weight
        weight.data = weight.data * -1.5
        assert_same(sample_with(engine, model), new_engines_rollout())
        assert Replay.captured == 12


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("graphed")
@pytest.mark.parametrize("at", [1, 3])
def test_a_capture_may_be_interrupted(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LeanEngine(tiny_model(), STOP_IDS, 0, slots=4)
    captures = count(1)

    class Interrupted(Replay):
        def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
            if next(captures) == at:
                raise KeyboardInterrupt
            return super().__call__(function)

    monkeypatch.setattr(graphs, "_CudaCapture", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample_with(engine, engine.policy)
    rollout = sample_with(engine, engine.policy)
    assert Replay.captured == at - 1 + 4  # none of a pool that may be left half made
    monkeypatch.setattr(LeanEngine, "graphed", False)
    assert_same(rollout, sample_with(LeanEngine, engine.policy))


@pytest.mark.usefixtures("graphed")
def test_rows_at_the_end_of_the_budget_need_no_bucket_beyond_it() -> None:
    """The cache has more columns than a call needs, and the host counts a row's columns on until it looks."""
    engine = LeanEngine(tiny_model(max_position_embeddings=600), [], 0)
    sample_with(engine, engine.policy, prompts=[[1] * 300], tokens=2)
    assert engine.rows.cache.columns == 384
    prompts = [[1] * 206, [2, 3]]
    rollout = sample_with(engine, engine.policy, prompts=prompts, tokens=50)
    assert rollout.lengths.tolist() == [50] * 4


@pytest.fixture
def empty_memory_is_nan() -> Iterator[None]:
    """Fresh memory holds anything; here it holds NaN, which is what torch fills it with in its deterministic mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("eager", "graphed", "empty_memory_is_nan")
@pytest.mark.parametrize("first", [None, {"prompts": PROMPTS * 4, "tokens": 30, "temperature": 0.0}])
def test_rows_that_are_not_live_read_no_fresh_memory(
    first: dict[str, Any] | None, eager: dict[tuple[str, int], Rollout]
) -> None:
    """While it is captured, at surplus rows of a bucket, and behind an evaluation, which draws no noise."""
    engine = LeanEngine(tiny_model("qwen2", seed=2), STOP_IDS, 0, slots=32)
    if first is not None:
        sample_with(engine, engine.policy, **first)
    assert_same(sample_with(engine, engine.policy, **CALLS[0]), eager["qwen2", 0])


def test_the_recorder_refuses_what_a_capture_refuses() -> None:
    values = torch.arange(4)
    for waits in (
        lambda: values.sum().item(),
        lambda: bool((values > 2).any()),
        lambda: values[values > 2],
        lambda: values.nonzero(),
        lambda: values.masked_select(values > 2),
    ):
        with Recorder(), pytest.raises(AssertionError, match="waits for the device"):
            waits()


def test_a_replay_reads_and_writes_where_the_capture_did() -> None:
    """Python values are those of the capture, and a tensor that was replaced is not seen."""
    state = {"x": torch.tensor([1.0, 2.0, 3.0]), "y": torch.zeros(2), "factor": torch.tensor(2.0)}
    scale = 10

    def function() -> None:
        doubled = state["x"][1:] * state["factor"]
        state["y"].add_(doubled.view(2, 1).sum(dim=1) * scale)

    replay = Replay(CPU)(function)
    state["y"].zero_()
    y, scale = state["y"], 1000
    state["x"].mul_(2)
    replay()
    assert y.tolist() == [80.0, 120.0]
    state["x"] = torch.zeros(3)
    replay()
    assert y.tolist() == [160.0, 240.0]


# The capture itself


def test_a_capture_runs_the_function_on_a_side_stream_first_and_shares_its_pool_with_its_own_kind_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a stand-in for ``torch.cuda`` that notes what is asked of it."""
    log: list[Any] = []

    names = iter(["side", "capture", "other side", "other capture"])

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.name = next(names)

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Current(Stream):
        def __init__(self) -> None:
            self.name = "current"

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def noted(*entry: Any) -> Iterator[None]:
        log.append(entry)
        yield
        log.append(f"end of {entry[0]}")

    pools = count()
    stand_ins = {
        "graph_pool_handle": lambda: next(pools),
        "Stream": Stream,
        "current_stream": lambda device: Current(),
        "stream": lambda stream: noted(stream.name),
        "CUDAGraph": Graph,
        "graph": lambda graph, pool, stream, **settings: noted("graph", pool, stream.name, settings),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    captures = [graphs._CudaCapture(CPU) for _ in range(2)]
    replays = [captures[i](lambda: log.append("run")) for i in (0, 0, 1)]

    def expected(side: str, pool: int, stream: str) -> list[Any]:
        return [
            f"{side} waits for current",
            (side,),
            "run",
            f"end of {side}",
            f"current waits for {side}",
            ("graph", pool, stream, {"capture_error_mode": "thread_local"}),
            "run",
            "end of graph",
        ]

    # Each has one pool and two streams for all of its graphs, and no stream runs for graphs of two pools.
    assert log == [*expected("side", 0, "capture") * 2, *expected("other side", 1, "other capture")]
    replays[0]()
    assert log[-1] == "replay"
