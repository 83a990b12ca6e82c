"""Everything that needs a GPU, checked and measured in one call: ``benchmarks/gpu.sh``.

A policy of Qwen2.5-1.5B's shape with random weights in bfloat16: what matters is bytes and kernels, not what it says.

1. *Checks*: graphs replay what the eager step computes; decode logits against Hugging Face's.
2. *Decode*: milliseconds a step, and the share of the bound, which is the time to read the weights and the cache once
   at the copy bandwidth measured here; ``generate()`` beside it.
3. *Regimes*: the published script's 16 × 400 rollout, and 1,319 questions × 400 tokens.
4. *Training*: ``fit`` on the embedded default learns in every precision and resumes to the bit; a training step of the
   published regime against its 25.4 s on an A800, and one of the recipe's size; peak memory against its estimate.

    --device cpu --small    the same on a tiny shape, where there is no GPU: the script is tested so
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a checkout

from gpu_training import training_step, works
from policies import qwen2_shape, random_policy

from rlvr_pl.rollout import LeanEngine, Sampling

SHORT, LONG = 16, 64  # token budgets; a step's time is the slope between them, without the prefill


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    layers: int
    hidden: int
    vocabulary: int
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    regime: tuple[int, int]  # completions and tokens of the published rollout
    questions: int
    rollouts: int  # of the embedded default
    prompts: int  # of a training step of the recipe


FULL = Scale(28, 1536, 151936, (16, 64, 256), (350, 1500), (16, 400), 1319, 24, 128)
SMALL = Scale(2, 96, 512, (4, 8), (100,), (4, 40), 20, 2, 8)


def qwen2_config(scale: Scale) -> PretrainedConfig:
    """Qwen2.5-1.5B: hidden size 1,536, 28 layers, 12/2 heads of 128."""
    intermediate = scale.hidden * 8960 // 1536
    return qwen2_shape(scale.vocabulary, scale.hidden, intermediate, scale.layers, heads=12, positions=4096)


def prompts_of(count: int, length: int, scale: Scale) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(scale.vocabulary, (count, length), generator=generator).tolist()


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written."""
    source = torch.empty(2**30 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), repeats=10)


def with_engine(engine: LeanEngine, prompts: Sequence[Sequence[int]], budget: int) -> None:
    noise = torch.rand(len(prompts), budget, generator=torch.Generator().manual_seed(0))
    engine.generate(prompts, 1, Sampling(budget), noise)


def with_generate(policy: PreTrainedModel, prompts: Sequence[Sequence[int]], budget: int, **more: object) -> None:
    config = GenerationConfig(
        max_new_tokens=budget, do_sample=True, top_k=0, top_p=1.0, eos_token_id=[-1], pad_token_id=0, **more
    )
    ids = torch.tensor(prompts, device=policy.device)
    with torch.no_grad():
        policy.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)


def step_ms(run: Callable[[int], object]) -> float:
    return 1e3 * (seconds(lambda: run(LONG)) - seconds(lambda: run(SHORT))) / (LONG - SHORT)


class EagerEngine(LeanEngine):
    """The engine without graphs."""

    graphed = False  # type: ignore[assignment]


def checks(policy: PreTrainedModel, scale: Scale) -> Iterator[tuple[str, str]]:
    prompts = [p[: 20 + 7 * i] for i, p in enumerate(prompts_of(8, 100, scale))]
    noise = torch.rand(16, 48, generator=torch.Generator().manual_seed(1))
    stops = list(range(0, scale.vocabulary, 40))
    graphed, eager = (
        engine(policy, stops, 0, slots=6).generate(prompts, 2, Sampling(48), noise)
        for engine in (LeanEngine, EagerEngine)
    )
    same = torch.equal(graphed.mask, eager.mask) and torch.equal(graphed.completion_ids, eager.completion_ids)
    yield "graphs sample what the eager step samples, with refills", "yes" if same else "NO"
    with torch.no_grad():
        ids = torch.tensor(prompts_of(4, 60, scale), device=policy.device)
        greedy = EagerEngine(policy, [-1], 0).generate(ids.tolist(), 1, Sampling(24, 0.0), None)
        whole = torch.cat([ids, greedy.completion_ids], dim=1)
        logprobs = policy(whole).logits[:, 59:-1].float().log_softmax(-1)
        scored = logprobs.gather(-1, greedy.completion_ids.unsqueeze(-1)).squeeze(-1)
    difference = (scored - greedy.sampling_logprobs).abs()
    yield "|log-prob of decoding − of one forward|, mean / max", f"{difference.mean():.4f} / {difference.max():.4f}"


def decode(policy: PreTrainedModel, scale: Scale, bandwidth: float) -> Iterator[tuple[str, str]]:
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    kv = 2 * scale.layers * 2 * (scale.hidden // 12) * 2  # bytes a token: keys and values, 2 heads, bfloat16
    yield "weights, GB; cache, kB a token", f"{weights / 1e9:.2f}; {kv / 1e3:.1f}"
    for context in scale.contexts:
        for rows in scale.rows:
            prompts = prompts_of(rows, context - (SHORT + LONG) // 2, scale)
            engine = LeanEngine(policy, [-1], 0, slots=rows)
            ms = step_ms(lambda budget, e=engine, p=prompts: with_engine(e, p, budget))
            del engine
            bound = 1e3 * (weights + rows * context * kv) / bandwidth
            name = f"{rows} rows, context {context}"
            yield f"{name}: ms a step (bound, share of it)", f"{ms:.2f} ({bound:.2f}, {bound / ms:.0%})"
            yield f"{name}: generate()", f"{step_ms(lambda n, p=prompts: with_generate(policy, p, n)):.2f}"
    prompts = prompts_of(scale.rows[0], scale.contexts[0], scale)
    with contextlib.suppress(RuntimeError):  # its compilation needs a C compiler
        ms = step_ms(lambda n: with_generate(policy, prompts, n, cache_implementation="static"))
        yield f"{scale.rows[0]} rows, context {scale.contexts[0]}: generate(), static cache", f"{ms:.2f}"


def regimes(policy: PreTrainedModel, scale: Scale) -> Iterator[tuple[str, str]]:
    rows, tokens = scale.regime
    prompts = prompts_of(rows, 100, scale)
    engine = LeanEngine(policy, [-1], 0)
    yield f"rollout of {rows} × {tokens}, s", f"{seconds(lambda: with_engine(engine, prompts, tokens)):.2f}"
    prompts = prompts_of(scale.questions, 100, scale)
    took = seconds(lambda: with_engine(engine, prompts, tokens), repeats=1)
    yield f"{scale.questions:,} questions × {tokens} tokens, s", f"{took:.1f}"
    if torch.cuda.is_available():
        yield "peak memory, GB", f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"


def training(scale: Scale, device: str) -> Iterator[tuple[str, str]]:
    shape = qwen2_config(scale)
    yield from works(device, scale.rollouts)
    rows, tokens = scale.regime
    prompts = max(1, rows // 8)
    yield from training_step(shape, device, "bf16-true", 0.04, prompts, tokens, minibatches=1, micro_batch_tokens=8192)
    yield from training_step(
        shape, device, "bf16-mixed", 0.0, scale.prompts, tokens, minibatches=4, micro_batch_tokens=16384
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    scale = SMALL if options.small else FULL
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    bandwidth = copy_bandwidth(options.device)
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{'copy bandwidth, GB/s':62} {bandwidth / 1e9:.0f}", flush=True)
    policy = random_policy(qwen2_config(scale), torch.bfloat16, options.device)
    for part in (checks(policy, scale), decode(policy, scale, bandwidth), regimes(policy, scale)):
        for what, value in part:
            print(f"{what:62} {value}", flush=True)
    del policy, part
    for what, value in training(scale, options.device):
        print(f"{what:62} {value}", flush=True)


if __name__ == "__main__":
    main()
