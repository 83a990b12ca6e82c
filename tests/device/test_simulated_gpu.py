"""The simulated GPU refuses and counts what a real one would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.helpers.simulated_gpu import GPU, MixedDevices, SimulatedCapture, WaitInCapture, simulated_gpu


def discard(function: Callable[[Tensor], object], x: Tensor) -> None:
    function(x)


def test_a_tensor_says_where_it_is_and_so_does_what_is_computed_from_it() -> None:
    with simulated_gpu() as gpu:
        x = torch.arange(6.0, device="cuda").view(2, 3)
        y = (x @ x.T).sum(dim=0)
        assert (x.device, x[0].device, y.device, y.is_cuda) == (GPU, GPU, GPU, True)
        assert torch.zeros(2).device.type == "cpu"
        assert not gpu.waits
        assert y.cpu().tolist() == [19.0, 64.0]
        assert (sum(gpu.waits.values()), sum(gpu.uploads.values())) == (1, 0)


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: torch.cat((gpu, cpu)),
        lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
        lambda gpu, cpu: cpu[gpu.long()],
        lambda gpu, cpu: gpu.index_copy_(0, cpu.long(), gpu),
    ],
)
def test_mixed_devices_are_refused(mix: Callable[[Tensor, Tensor], object]) -> None:
    with simulated_gpu(), pytest.raises(MixedDevices):
        mix(torch.arange(3.0, device="cuda"), torch.arange(3.0))


def test_a_number_of_the_host_may_meet_the_gpu() -> None:
    with simulated_gpu() as gpu:
        assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).is_cuda
        assert not gpu.uploads


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0),
        lambda x: x.to("cpu"),
        lambda x: torch.zeros(3).copy_(x),
    ],
)
def test_waits_are_counted_and_refused_in_a_captured_step(wait: Callable[[Tensor], object]) -> None:
    with simulated_gpu() as gpu:
        x = torch.arange(3.0, device="cuda")
        wait(x)
        assert sum(gpu.waits.values()) == 1
        with pytest.raises(WaitInCapture):
            SimulatedCapture(GPU)(partial(discard, wait, x))


@pytest.mark.parametrize(
    "upload",
    [
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[[0, 1]],
        lambda x: x.copy_(torch.zeros(3)),
    ],
)
def test_uploads_are_counted_and_refused_in_a_captured_step(upload: Callable[[Tensor], object]) -> None:
    with simulated_gpu() as gpu:
        x = torch.arange(3.0, device="cuda")
        upload(x)
        assert sum(gpu.uploads.values()) == 1
        with pytest.raises(WaitInCapture):
            SimulatedCapture(GPU)(partial(discard, upload, x))


def test_gradients_and_what_a_checkpoint_computes_again_lie_on_the_gpu() -> None:
    with simulated_gpu():
        layer = torch.nn.Linear(3, 3).to("cuda")
        x = torch.ones(2, 3, device="cuda")
        places = []

        def forward(x: Tensor) -> Tensor:
            places.append(x.device)
            return layer(x).relu()

        checkpoint(forward, checkpoint(forward, x, use_reentrant=False), use_reentrant=False).sum().backward()
        assert len(places) == 4, "each of them twice"
        assert set(places) == {GPU}
        assert layer.weight.grad is not None
        assert layer.weight.grad.device == GPU


def test_autocast_for_cuda_is_in_force() -> None:
    with simulated_gpu(), torch.autocast("cuda", torch.bfloat16):
        assert torch.is_autocast_enabled("cuda")
        assert (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype == torch.bfloat16


def test_outside_of_it_there_is_no_gpu() -> None:
    with simulated_gpu():
        x = torch.ones(2, device="cuda")
    assert x.device.type == "cpu"
    assert not torch.cuda.is_available()
