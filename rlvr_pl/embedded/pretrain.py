"""Make the embedded model: ``python -m rlvr_pl.embedded.pretrain`` (``make embedded``).

A Qwen2 of 0.9 million parameters imitates solutions of the embedded problems, by supervised training. Their authors are
prone to slips (:mod:`rlvr_pl.embedded.annotators`), and carry out what they set about without an error: so does the
model, which leaves reinforcement learning the slips to find. Only some of the solutions carry the answer tags, so that
it starts as an instruction-tuned model does: it can, but seldom does, answer in the requested format.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlvr_pl.data.problems import Story, problem_stream
from rlvr_pl.data.prompts import SYSTEM_PROMPT, PromptFormat
from rlvr_pl.data.solutions import Work
from rlvr_pl.embedded.annotators import annotate, read_steps
from rlvr_pl.pretrained import EMBEDDED_MODEL, stop_token_ids
from rlvr_pl.rollout import LeanEngine, Sampling

TAGGED_SHARE = 0.15  # share of the solutions that carry the tags
VOCABULARY = 512
BATCH = 64
EVALUATION_EVERY = 100
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
MAX_COMPLETION_TOKENS = 96

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def solution_text(work: Work, tagged: bool) -> str:
    """Write a solution as a completion, with or without the tags."""
    reasoning = "\n".join(work.lines)
    if tagged:
        return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{work.quantity}\n</answer>"
    return f"{reasoning}\nThe answer is {work.quantity}."


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE from the problems, digits one by one: any text encodes, and numbers align."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tags = ["<reasoning>", "</reasoning>", "<answer>", "</answer>"]
    problems = list(itertools.islice(problem_stream("train", seed), 5000))
    corpus = [text for p in problems for text in (SYSTEM_PROMPT, p.question, solution_text(p.work, False))]
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


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw endless ``(input_ids, labels)`` of shape (BATCH, L), right-padded; labels are -100 on prompts and pads."""
    stream = problem_stream("train", seed)
    rng = random.Random(seed)

    def example() -> tuple[torch.Tensor, torch.Tensor]:
        problem = next(stream)
        prompt = tokenizer(PromptFormat().write(tokenizer, problem.question))["input_ids"]
        solution = solution_text(annotate(problem.steps, rng), tagged=rng.random() < TAGGED_SHARE)
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


def clean_share(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Story]) -> float:
    """Measure competence: the share of sampled steps that are done in one of the two ways, without an error."""
    prompts = [PromptFormat().write(tokenizer, problem.question) for problem in problems]
    engine = LeanEngine(model, stop_token_ids(model, tokenizer), pad_id=0)
    noise = torch.rand((len(problems), MAX_COMPLETION_TOKENS), generator=torch.Generator().manual_seed(0))
    rollout = engine.generate(tokenizer(prompts)["input_ids"], 1, Sampling(MAX_COMPLETION_TOKENS, 1.0), noise)
    texts = tokenizer.batch_decode(rollout.completion_ids, skip_special_tokens=True)
    done = [how for problem, text in zip(problems, texts, strict=True) for _, how in read_steps(problem.steps, text)]
    return sum(how != "other" for how in done) / len(done)


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, max_steps: int, seed: int) -> None:
    """Train in place, with a learning rate that falls to a twentieth."""
    held_out = list(itertools.islice(problem_stream("train", seed + 1), 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP_STEPS, total_iters=WARMUP_STEPS)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=max_steps)
    start = time.perf_counter()
    for step, (input_ids, labels) in enumerate(itertools.islice(batches(tokenizer, seed), max_steps), start=1):
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        decay.step()
        if step % EVALUATION_EVERY == 0 or step == max_steps:
            clean = clean_share(model, tokenizer, held_out)
            seconds = time.perf_counter() - start
            print(f"{step:5d}  loss {loss.item():.3f}  steps without error {clean:.1%}  {seconds:.0f} s", flush=True)


def pretrain(output: Path, max_steps: int, seed: int) -> None:
    """Train and save into ``output``.

    Args:
        output: a folder.
        max_steps: of 64 solutions each.
        seed: of the initial weights, the problems and the slips.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(seed)
    model = make_model(tokenizer)
    train(model, tokenizer, max_steps, seed)
    output.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(output)  # half the size; it is read back as float32
    tokenizer.save_pretrained(output)
    print(f"saved to {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded model: about half an hour on two cores.")
    parser.add_argument("--output", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument("--max_steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    pretrain(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
