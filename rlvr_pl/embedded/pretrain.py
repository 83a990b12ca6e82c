"""Make the embedded model: ``python -m rlvr_pl.embedded.pretrain`` (``make embedded``).

A Qwen2 of 0.9 million parameters learns to solve the embedded problems by supervised training, in two stages that leave
reinforcement learning something to do:

1. It learns to reason, from whole solutions, until a good half of the problems is solved. Only some of the solutions
   carry the answer tags, so that it starts as an instruction-tuned model does: it can, but seldom does, answer in the
   requested format.
2. It picks up a bad habit. For a few dozen steps the solutions are hasty: asked what something is worth, most of them
   stop at the count and forget the price. The right continuation stays in its samples, for a verifier to find.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlvr_pl.data.problems import embedded_problems, problem_stream
from rlvr_pl.data.prompts import SYSTEM_PROMPT, format_prompt
from rlvr_pl.pretrained import EMBEDDED_MODEL, stop_token_ids
from rlvr_pl.rewards import gold_answer, last_number, same_number
from rlvr_pl.rollout import GenerateEngine, Sampling

TAGGED_SHARE = 0.15  # share of the solutions that carry the tags
HASTY_SHARE = 0.65  # share of the second stage's solutions to questions of worth that stop at the count
VOCABULARY = 512
BATCH = 64
EVALUATION_EVERY = 50

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def solution_text(answer: str, tagged: bool) -> str:
    """Write a completion for a gold answer in GSM8K's schema, with or without the tags."""
    reasoning, _, number = answer.rpartition("\n#### ")
    if tagged:
        return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{number}\n</answer>"
    return f"{reasoning}\nThe answer is {number}."


def hasty(answer: str) -> str:
    """Cut the last line off a gold answer, which then ends in the number of the line before."""
    *lines, _ = answer.rpartition("\n#### ")[0].split("\n")
    return "\n".join([*lines, f"#### {lines[-1].partition('=')[2]}"])


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE from the problems, digits one by one: any text encodes, and numbers align."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tags = ["<reasoning>", "</reasoning>", "<answer>", "</answer>"]
    problems = embedded_problems("train", 5000, seed)
    corpus = [text for p in problems for text in (SYSTEM_PROMPT, p["question"], solution_text(p["answer"], False))]
    corpus += ["system\nuser\nassistant\n"] * len(problems)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(tags),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Make a randomly initialised Qwen2 of about 0.9 million parameters over the tokenizer's vocabulary."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    return model


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, hasty_share: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw endless ``(input_ids, labels)`` of shape (BATCH, L), right-padded; labels are -100 on prompts and pads."""
    stream = problem_stream("train", seed)
    rng, hasty_rng = random.Random(seed), random.Random(5)

    def example() -> tuple[torch.Tensor, torch.Tensor]:
        problem = next(stream)
        prompt = tokenizer(format_prompt(tokenizer, problem["question"], SYSTEM_PROMPT))["input_ids"]
        tagged = rng.random() < TAGGED_SHARE
        answer = problem["answer"]
        if "worth" in problem["question"] and hasty_rng.random() < hasty_share:
            answer = hasty(answer)
        solution = solution_text(answer, tagged)
        completion = [*tokenizer(solution)["input_ids"], tokenizer.eos_token_id]
        return torch.tensor(prompt + completion), torch.tensor([-100] * len(prompt) + completion)

    while True:
        # Sorting a pool by length before cutting it into batches saves a quarter of the pads.
        pool = sorted((example() for _ in range(8 * BATCH)), key=lambda pair: len(pair[0]))
        starts = list(range(0, len(pool), BATCH))
        rng.shuffle(starts)
        for start in starts:
            inputs, labels = zip(*pool[start : start + BATCH], strict=True)
            yield (
                pad_sequence(list(inputs), batch_first=True, padding_value=tokenizer.pad_token_id),
                pad_sequence(list(labels), batch_first=True, padding_value=-100),
            )


def solved_share(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[dict[str, str]]) -> float:
    """Measure greedy flexible accuracy: the share of problems whose completion ends in the gold number."""
    prompts = [format_prompt(tokenizer, p["question"], SYSTEM_PROMPT) for p in problems]
    engine = GenerateEngine(model, stop_token_ids(model, tokenizer), pad_id=0)
    rollout = engine.generate(
        tokenizer(prompts)["input_ids"], 1, Sampling(max_completion_tokens=96, temperature=0), None
    )
    texts = tokenizer.batch_decode(rollout.completion_ids, skip_special_tokens=True)
    right = [same_number(last_number(t), gold_answer(p["answer"])) for t, p in zip(texts, problems, strict=True)]
    return sum(right) / len(right)


@dataclass(frozen=True)
class Stage:
    """One stage of the training: its data, its schedule, and when it ends."""

    name: str
    seed: int
    hasty_share: float
    learning_rate: float
    warmup_steps: int
    max_steps: int
    decay_to: float = 1.0  # share of the learning rate at max_steps
    stop_at: float = 1.0  # the share of held-out problems solved at which to stop before


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int) -> None:
    """Train for one stage, in place."""
    held_out = embedded_problems("train", 256, seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / stage.warmup_steps, total_iters=stage.warmup_steps)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, stage.decay_to, total_iters=stage.max_steps)
    start = time.perf_counter()
    steps = itertools.islice(batches(tokenizer, stage.seed, stage.hasty_share), stage.max_steps)
    for step, (input_ids, labels) in enumerate(steps, start=1):
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        decay.step()
        if step % EVALUATION_EVERY == 0:
            share = solved_share(model, tokenizer, held_out)
            seconds = time.perf_counter() - start
            print(f"{stage.name} {step:5d}  loss {loss.item():.3f}  solved {share:.1%}  {seconds:.0f} s", flush=True)
            if share >= stage.stop_at:
                break


def pretrain(output: Path, stop_at: float, max_steps: int, seed: int) -> None:
    """Train both stages and save into ``output``.

    Args:
        output: a folder.
        stop_at: the share of 256 held-out problems solved that ends the first stage.
        max_steps: of the first stage.
        seed: of the initial weights and of the problems.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(seed)
    model = make_model(tokenizer)
    reason = Stage("reason", seed, 0.0, 3e-3, warmup_steps=100, max_steps=max_steps, decay_to=0.1, stop_at=stop_at)
    train(model, tokenizer, reason, seed)
    model.bfloat16().float()  # the second stage starts from what a saved model would be
    habit = Stage("habit", seed + 777, HASTY_SHARE, 2e-4, warmup_steps=20, max_steps=min(50, max_steps))
    train(model, tokenizer, habit, seed)
    output.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(output)  # half the size; it is read back as float32
    tokenizer.save_pretrained(output)
    print(f"saved to {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded model: about 20 minutes on two cores.")
    parser.add_argument("--output", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument(
        "--stop_at", type=float, default=0.56, help="share of held-out problems solved that ends stage 1"
    )
    parser.add_argument("--max_steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    pretrain(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
