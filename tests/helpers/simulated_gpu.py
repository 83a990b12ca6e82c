"""A GPU that is not there: CPU arithmetic under CUDA's name, for the faults that a CPU hides.

Inside of :func:`simulated_gpu` a tensor that is asked for on ``cuda`` is an ordinary one whose storage is noted as
lying there. It says so of itself (``device``, ``is_cuda``), operators refuse to mix it with a CPU tensor as CUDA's
would, and whatever would make the host wait for the device, or copy to it, is counted by the line of the package that
asked for it. While a decode step is captured both are errors.

What lies where is kept by storage, not by tensor, so that views, saved activations and checkpointed inputs keep their
place. It cannot show what only the hardware has: kernels and their rounding, streams, memory. Operators of autograd's
own engine pass by unseen.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rlvr_pl.rollout import graphs
from tests.helpers.paths import ROOT

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

# What gives the host a value, or a shape that depends on values.
WAITS = {
    *("item", "tolist", "numpy", "nonzero", "argwhere", "masked_select", "unique", "equal", "allclose", "is_nonzero"),
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__"),
}
# What takes tensors of both sides.
CROSSING = {
    "__set__",
    "copy_",
    "to",
    "cpu",
    "cuda",
    "type_as",
    "is_same_size",
    "swap_tensors",
    "_has_compatible_shallow_copy_type",
}


class MixedDevices(RuntimeError):
    """An operator has met tensors of the CPU and of the GPU."""


class WaitInCapture(RuntimeError):
    """A captured step has waited for the device, or copied to it."""


class SimulatedGPU(TorchFunctionMode):
    """Sends what is asked for on ``cuda`` to the CPU, and keeps the books.

    Attributes:
        waits: how often the host has waited for the device, by kind and line.
        uploads: how often it has copied to it.
        capturing: whether a step is being captured.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.capturing = False
        self._in_backward = False
        self._storages: dict[int, StorageWeakRef] = {}  # by address, which a weak reference keeps from being used again

    def clear(self) -> None:
        """Forget what has been counted."""
        self.waits.clear()
        self.uploads.clear()

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether a tensor lies on the GPU."""
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata in self._storages

    def put(self, tensor: Tensor) -> Tensor:
        """Note that a tensor lies on the GPU."""
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            self._storages.setdefault(storage._cdata, StorageWeakRef(storage))
            if len(self._storages) % 4096 == 0:
                self._storages = {key: ref for key, ref in self._storages.items() if not ref.expired()}
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        if name == "__get__":
            return self._property(func, args)
        if name == "backward":
            return self._backward(args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in ("to", "cpu", "cuda") and tensors:
            return self._move(func, name, args, kwargs)
        there = [tensor for tensor in tensors if self.holds(tensor)]
        target = kwargs.get("device")
        if target is not None:
            target = torch.device(target)
            kwargs["device"] = target if target.type == "meta" else CPU
        if there:
            self._check(func, name, args, kwargs, tensors)
        if name == "tensor" and target is not None and target.type == "cuda":
            self._upload()
        result = func(*args, **kwargs)
        if target.type == "cuda" if target is not None else there:
            known = {id(tensor) for tensor in tensors}
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and id(leaf) not in known:
                    self.put(leaf)
        return result

    def _property(self, func: Any, args: Any) -> Any:
        name, tensor = getattr(func.__self__, "__name__", ""), args[0]
        if name == "device" and isinstance(tensor, Tensor) and self.holds(tensor):
            return GPU
        if name in ("is_cuda", "is_cpu") and isinstance(tensor, Tensor):
            return self.holds(tensor) == (name == "is_cuda")
        value = func(*args)
        if name == "grad" and value is not None and self.holds(tensor):
            self.put(value)  # the engine's own operators pass by unseen
        return value

    def _backward(self, args: Any, kwargs: Any) -> None:
        """Run the engine with this mode on: a checkpoint computes its part again in there, and is to be watched."""
        (root,) = args
        assert not kwargs.get("create_graph")
        before, self._in_backward = self._in_backward, True
        try:
            with self:
                torch.autograd.graph._engine_run_backward(
                    (root,), (self.put(torch.ones_like(root)),), False, False, (), True, True
                )
        finally:
            self._in_backward = before

    def _move(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        source = self.holds(tensor)
        target = {"cpu": CPU, "cuda": GPU}.get(name)
        if name == "to":
            for i, argument in enumerate(rest):
                if isinstance(argument, Tensor):
                    target = GPU if self.holds(argument) else CPU
                elif isinstance(argument, str | torch.device):
                    target = torch.device(argument)
                    rest[i] = target if target.type == "meta" else CPU
            if kwargs.get("device") is not None:
                target = torch.device(kwargs["device"])
                kwargs["device"] = target if target.type == "meta" else CPU
        else:
            func, rest, kwargs = Tensor.to, [CPU], {}
        moved = func(tensor, *rest, **kwargs)
        if target is not None and target.type == "meta":
            return moved
        arrives = source if target is None else target.type == "cuda"
        if source and not arrives:
            self._wait("to the host")
        elif arrives and not source:
            self._upload()
        if source != arrives and moved.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            moved = moved.clone()
            if tensor.is_leaf and not tensor.requires_grad:
                moved = moved.detach()
        with torch._C.DisableTorchFunction():
            there = moved.untyped_storage()._cdata in self._storages
            if there and not arrives:
                del self._storages[moved.untyped_storage()._cdata]
        return self.put(moved) if arrives else moved

    def _check(self, func: Any, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        if name == "cumsum" and torch.are_deterministic_algorithms_enabled() and args[0].is_floating_point():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
        if name in WAITS or (name == "where" and len(args) == 1):
            self._wait(name)
        if name == "repeat_interleave" and len(tensors) > 1 and kwargs.get("output_size") is None:
            self._wait(name)
        here = [tensor for tensor in tensors if not self.holds(tensor)]
        if name in ("__getitem__", "__setitem__", "index_put_"):
            self._check_index(name, args)
        elif name == "copy_":
            if here and not self.holds(args[0]):
                self._wait("copy_ to the host")
            elif here:
                self._upload()
        elif name not in CROSSING and not self._in_backward:
            # A number on the host goes with a kernel's arguments; a tensor of any size does not.
            foreign = [
                tensor for tensor in here if tensor.dim() > 0 or name in ("cat", "stack", "gather", "searchsorted")
            ]
            if foreign:
                shapes = [tuple(tensor.shape) for tensor in foreign]
                raise MixedDevices(f"{name} meets tensors of the CPU, {shapes}, at {_line()}")

    def _check_index(self, name: str, args: Any) -> None:
        indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        if not self.holds(args[0]):
            raise MixedDevices(f"{name} of a tensor of the CPU by one of the GPU at {_line()}")
        if any(index.dtype == torch.bool and index.dim() > 0 for index in indices):
            self._wait(f"{name} by a mask")
        if any(not self.holds(index) for index in indices) or isinstance(args[1], list):
            self._upload()

    def _wait(self, kind: str) -> None:
        if self.capturing:
            raise WaitInCapture(f"{kind} at {_line()}")
        self.waits[f"{kind} at {_line()}"] += 1

    def _upload(self) -> None:
        if self.capturing:
            raise WaitInCapture(f"an upload at {_line()}")
        self.uploads[_line()] += 1


def _line() -> str:
    """The innermost line of the package on the stack, or of the libraries where it is not on it."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT / "rlvr_pl"):
            return f"{file.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside of the package"


class SimulatedCapture:
    """In the place of ``rollout.graphs._CudaCapture``: the second run of a function may neither wait nor upload."""

    gpu: SimulatedGPU
    captured = 0

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        def captured() -> None:
            self.gpu.capturing = True
            try:
                function()
            finally:
                self.gpu.capturing = False

        function()
        captured()
        type(self).captured += 1
        return captured


@contextmanager
def simulated_gpu() -> Iterator[SimulatedGPU]:
    """Have one GPU: for tensors, for autocast and for Lightning.

    Yields:
        The device, which has counted waits and uploads.
    """
    gpu = SimulatedGPU()
    SimulatedCapture.gpu, SimulatedCapture.captured = gpu, 0
    autocast = torch.amp.autocast_mode.autocast.__init__
    enabled, dtype, mm = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.mm

    def product(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None, **more: Any) -> Tensor:
        """``torch.mm``, which on CUDA alone multiplies halves into float32."""
        if out_dtype is None:
            return mm(a, b, **more)
        assert a.is_cuda
        assert a.dtype == b.dtype in (torch.bfloat16, torch.float16)
        return mm(a.to(out_dtype), b.to(out_dtype))

    def init(self: Any, device_type: str = "cuda", *args: Any, **kwargs: Any) -> None:
        autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    patches = [
        patch.object(torch.amp.autocast_mode.autocast, "__init__", init),
        patch.object(torch, "is_autocast_enabled", lambda device="cpu": enabled("cpu")),
        patch.object(torch, "get_autocast_dtype", lambda device="cpu": dtype("cpu")),
        patch.object(torch, "mm", product),
        patch.object(torch.cuda, "get_device_capability", lambda device=None: (7, 5)),  # reads no row by its length
        patch.object(torch.cuda, "get_device_name", lambda device=None: "a simulated GPU"),
        patch.object(graphs, "_CudaCapture", SimulatedCapture),
        # Which compares places inside of operators, where nothing is seen, with those outside.
        patch.dict(torch.utils.checkpoint._allowed_determinism_checks_to_fns, default=lambda tensor: tensor.shape),
        patch.object(CUDAAccelerator, "is_available", staticmethod(lambda: True)),
        patch.object(CUDAAccelerator, "auto_device_count", staticmethod(lambda: 1)),
        patch.object(CUDAAccelerator, "parse_devices", staticmethod(lambda devices: [0])),
        patch.object(CUDAAccelerator, "get_parallel_devices", staticmethod(lambda devices: [GPU])),
        patch.object(CUDAAccelerator, "setup_device", lambda self, device: None),
        patch.object(CUDAAccelerator, "teardown", lambda self: None),
    ]
    for each in patches:
        each.start()
    try:
        with gpu:
            yield gpu
    finally:
        for each in reversed(patches):
            each.stop()
