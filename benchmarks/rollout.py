"""Time the rollout engine against Hugging Face's generation: ``python benchmarks/rollout.py``.

Every engine gets the same prompts, the same sampling at temperature 1 and the same token budget. They take turns, round
by round, in one process; the table gives each one's median tokens per second and the ratio of medians to the engine's.
Lengths are either fixed (nothing stops) or geometric (a random model's next-token distribution is nearly uniform, so a
share of the vocabulary as stop ids ends a completion at each token with that chance).

The policies: the embedded one as it was trained; "1M", its shape with random weights (0.85M parameters); "26M", a
random Qwen2; and that one with Qwen2.5's vocabulary of 151,936 (102M parameters).

    --quick           the smallest cases, once
    --cases TEXT      only cases whose name contains it
    --threads N       torch's threads; all cores by default
    --profile         where the engine's time goes, by operator
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a checkout

from policies import qwen2_shape, random_policy

from rlvr_pl.data import GSM8KDataModule
from rlvr_pl.pretrained import load_config, load_policy, load_tokenizer, stop_token_ids
from rlvr_pl.rollout import LeanEngine, Sampling

# Tokens of GSM8K's 1,319 test prompts in Qwen2.5's chat template with this project's system prompt, in sixteenths.
GSM8K_PROMPT_TOKENS = (62, 73, 77, 80, 83, 87, 90, 93, 96, 100, 104, 107, 112, 118, 126, 139, 227)
MEAN_LENGTH = 48  # of geometric completions, as long as no budget of 192 cuts them
LONG_ROUND_S, CASE_S = 60, 20  # what ends a case: a long round, or many short ones


@dataclass(frozen=True)
class Case:
    """What is generated: ``group_size`` completions of each prompt."""

    name: str
    policy: PreTrainedModel
    prompts: list[list[int]]
    group_size: int
    budget: int
    stop_ids: list[int]
    greedy: bool = False
    slots: int = 256  # sequences in flight: of the engine, and in a batch of generate()


def qwen2_26m(vocabulary: int) -> PreTrainedModel:
    """26M parameters with a vocabulary of 4,096."""
    return random_policy(qwen2_shape(vocabulary, hidden=512, intermediate=1728, layers=8, heads=8, positions=1024))


def gsm8k_prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Random tokens in prompts as long as GSM8K's."""
    generator = random.Random(0)
    prompts = []
    for _ in range(count):
        sixteenth = generator.randrange(16)
        length = generator.randint(GSM8K_PROMPT_TOKENS[sixteenth], GSM8K_PROMPT_TOKENS[sixteenth + 1])
        prompts.append([generator.randrange(vocabulary) for _ in range(length)])
    return prompts


def embedded_cases() -> list[Case]:
    policy = load_policy("embedded", load_config("embedded")).eval()
    stops = list(stop_token_ids(policy, load_tokenizer("embedded")))
    data = GSM8KDataModule("embedded", tokenizer="embedded")
    data.setup()
    train = [list(q.prompt_ids) for q in data.questions["train"][:16]]
    test = [list(q.prompt_ids) for q in sorted(data.questions["test"], key=lambda q: -len(q.prompt_ids))]
    cases = []
    for prompts, group in ((4, 8), (16, 16)):
        shape = f"embedded {prompts}×{group}"
        cases += [
            Case(f"{shape} fixed 96", policy, train[:prompts], group, 96, []),
            Case(f"{shape} its own lengths", policy, train[:prompts], group, 96, stops),
        ]
    return [*cases, Case("embedded evaluation of 512", policy, test[:512], 1, 96, stops, greedy=True, slots=128)]


def random_cases(
    name: str, policy: PreTrainedModel, shapes: list[tuple[int, int]], fixed: int, evaluation: bool = False
) -> list[Case]:
    """Completions of just ``fixed`` tokens, and geometric ones."""
    vocabulary = policy.config.vocab_size
    stops = list(range(0, vocabulary, MEAN_LENGTH))
    cases = []
    for prompts, group in shapes:
        ids = gsm8k_prompts(prompts, vocabulary)
        cases += [
            Case(f"{name} {prompts}×{group} fixed {fixed}", policy, ids, group, fixed, []),
            Case(f"{name} {prompts}×{group} geometric", policy, ids, group, 192, stops),
        ]
    if evaluation:
        questions = gsm8k_prompts(512, vocabulary)
        cases.append(Case(f"{name} evaluation of 512, geometric", policy, questions, 1, 192, stops, slots=128))
    return cases


def make_cases() -> list[Case]:
    small, medium, large = random_policy(load_config("embedded")), qwen2_26m(4096), qwen2_26m(151936)
    return [
        *embedded_cases(),
        *random_cases("1M", small, [(4, 8), (16, 8)], fixed=96, evaluation=True),
        *random_cases("26M", medium, [(4, 8), (16, 16)], fixed=64, evaluation=True),
        *random_cases("26M, full vocabulary", large, [(4, 8), (16, 16)], fixed=24),
    ]


def settings(case: Case, **more: object) -> GenerationConfig:
    sampled = {} if case.greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=case.budget,
        do_sample=not case.greedy,
        eos_token_id=case.stop_ids or [-1],  # with none, the policy's own would be filled in
        pad_token_id=0,
        **sampled,
        **more,
    )


def tokens_until_stop(completions: torch.Tensor, stop_ids: Sequence[int]) -> int:
    is_stop = torch.isin(completions, torch.tensor(stop_ids, dtype=torch.int64))
    return int((is_stop.cumsum(1) - is_stop.long() == 0).sum())


def with_generate(case: Case, repeat: bool, **more: object) -> int:
    """Hugging Face's ``generate()``: members as repeated prompts, or as ``num_return_sequences``."""
    width = max(map(len, case.prompts))
    prompts = [p for p in case.prompts for _ in range(case.group_size if repeat else 1)]
    total = 0
    for start in range(0, len(prompts), case.slots):
        part = prompts[start : start + case.slots]
        ids = torch.tensor([[0] * (width - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        returned = 1 if repeat else case.group_size
        config = settings(case, num_return_sequences=returned, **more)
        with torch.no_grad():
            output = case.policy.generate(ids, attention_mask=mask, generation_config=config)
        total += tokens_until_stop(output[:, width:], case.stop_ids)
    return total


def with_continuous_batching(case: Case) -> int:
    prompts = [p for p in case.prompts for _ in range(case.group_size)]
    config = settings(case)
    outputs = case.policy.generate_batch(prompts, generation_config=config)
    return sum(len(output.generated_tokens) for output in outputs.values())


def with_engine(case: Case, engine: LeanEngine) -> int:
    rows = len(case.prompts) * case.group_size
    noise = None if case.greedy else torch.rand(rows, case.budget, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(case.budget, 0.0 if case.greedy else 1.0)
    return int(engine.generate(case.prompts, case.group_size, sampling, noise).lengths.sum())


def contenders(case: Case, continuous: bool) -> dict[str, Callable[[], int]]:
    """What takes turns, by name; each returns how many tokens it generated."""
    engine = LeanEngine(case.policy, case.stop_ids, 0, case.slots)
    entries: dict[str, Callable[[], int]] = {
        "engine": lambda: with_engine(case, engine),
        "generate, repeated prompts": lambda: with_generate(case, repeat=True),
    }
    if case.group_size > 1:
        entries["generate, num_return_sequences"] = lambda: with_generate(case, repeat=False)
        entries["generate, static cache"] = lambda: with_generate(case, repeat=True, cache_implementation="static")
    if continuous:
        entries["continuous batching"] = lambda: with_continuous_batching(case)
    return entries


def measure(entries: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median tokens per second of each, taking turns.

    A first round does not count, unless it takes minutes: then nothing in it needs to be warmed up, and it is enough.
    Short rounds are repeated more often, since one of them says little.
    """
    rates: dict[str, list[float]] = {name: [] for name in entries}
    start, laps, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < LONG_ROUND_S and (laps <= rounds or (elapsed < CASE_S and laps <= 5 * rounds)):
        if laps == 1:
            rates = {name: [] for name in entries}
        for name, run in entries.items():
            started = time.perf_counter()
            rates[name].append(run() / (time.perf_counter() - started))
        laps, elapsed = laps + 1, time.perf_counter() - start
    return {name: median(values) for name, values in rates.items()}


def print_profile(case: Case) -> None:
    engine = LeanEngine(case.policy, case.stop_ids, 0, case.slots)
    with_engine(case, engine)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with_engine(case, engine)
    print(case.name)
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    cases = [c for c in make_cases() if options.cases in c.name and not (options.quick and "4×8" not in c.name)]
    if options.profile:
        for case in cases:
            print_profile(case)
        return
    table = Table(title=f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; medians of rounds")
    for column in ("case", "engine, tokens/s", "against", "tokens/s", "engine is faster by"):
        table.add_column(column, justify="left" if column in ("case", "against") else "right")
    for number, case in enumerate(cases, start=1):
        print(f"{number}/{len(cases)} {case.name}", file=sys.stderr, flush=True)
        # Continuous batching is made for GPUs, and on a CPU so slow that one case says it all.
        continuous = case.name == "embedded 4×8 fixed 96"
        rates = measure(contenders(case, continuous), 1 if options.quick else options.rounds)
        engine = rates.pop("engine")
        for i, (name, rate) in enumerate(rates.items()):
            own = (case.name, f"{engine:,.0f}") if i == 0 else ("", "")
            table.add_row(*own, name, f"{rate:,.0f}", f"{engine / rate:.2f}×", end_section=i == len(rates) - 1)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
