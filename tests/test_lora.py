"""Low-rank adapters: what learns, what samples, what is kept, and what is refused."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from rlvr_pl.lora import (
    LoRA,
    WithoutAdapter,
    adapted_layers,
    add_adapter,
    check_same_adapter,
    check_targets,
    merged_weight,
    merged_weights,
)
from rlvr_pl.losses import GRPO
from rlvr_pl.main import main
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.pretrained import checkpoint_activations, fingerprint, load_config, load_policy, save_policy
from rlvr_pl.rollout import GenerateEngine
from rlvr_pl.rollout.weights import DecoderWeights, why_not_covered
from rlvr_pl.scoring import PackedGroups, choose_layout, score
from rlvr_pl.types import ConfigError
from tests.helpers.comparisons import plan
from tests.helpers.engines import assert_same, completions, sample, sample_with, sequences_of
from tests.helpers.policies import FAMILIES, make_tiny_policy, tiny_model
from tests.helpers.runs import assert_same_run, last_state, read_scalars, tiny_run

torch.set_num_threads(1)

BODY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(family: str = "qwen2", targets: list[str] | None = None, **settings: Any) -> PreTrainedModel:
    """A policy whose adapter has learned something."""
    policy = tiny_model(family, **settings)
    add_adapter(policy, LoRA(r=4, lora_alpha=8, target_modules=targets), seed=0)
    learn(policy, seed=1)
    return policy


def learn(policy: PreTrainedModel, seed: int) -> None:
    """Give the adapter's zeros some values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in adapted_layers(policy):
            layer.lora_B["default"].weight.normal_(0, 0.3, generator=generator)


def merged(policy: PreTrainedModel, folder: Path) -> PreTrainedModel:
    save_policy(policy, merged_weights(policy), folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logprobs(policy: Any) -> Tensor:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    return score(policy, PackedGroups().lay_out([[5, 6, 7], [8, 9]], [0, 1], ids, [4, 2]), 1.0).logprobs


# What an adapter is


def test_it_starts_as_nothing_and_from_the_seed() -> None:
    base, policy, other = tiny_model(), tiny_model(), tiny_model()
    for i, adapted_policy in enumerate((policy, other)):
        torch.manual_seed(i)  # which must not matter
        add_adapter(adapted_policy, LoRA(r=4), seed=3)
    for p in (base, policy):
        choose_layout(p)
    assert torch.equal(logprobs(policy), logprobs(base))
    for (name, layer), (_, twin) in zip(adapted_layers(policy), adapted_layers(other), strict=True):
        start = layer.lora_A["default"].weight
        assert torch.equal(start, twin.lora_A["default"].weight), name
        bound = start.shape[1] ** -0.5
        assert 0.8 * bound < start.abs().max() <= bound, name
    add_adapter(unlike := tiny_model(), LoRA(r=4), seed=4)
    assert not torch.equal(start, list(adapted_layers(unlike))[-1][1].lora_A["default"].weight)


def test_only_the_adapter_learns() -> None:
    policy = tiny_model(tied=True)
    add_adapter(policy, LoRA(r=4, target_modules=["q_proj", "down_proj"]), seed=0)
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 2 * 2, "A and B of two layers' two projections"
    assert all(".lora_" in name for name in names)
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 2 * 4 * (32 + 32 + 64 + 32)


@pytest.mark.parametrize("packed", [True, False])
def test_without_its_adapter_the_policy_is_what_it_was(packed: bool) -> None:
    base, policy = tiny_model(), adapted()
    if packed:
        choose_layout(base), choose_layout(policy)
    assert torch.equal(logprobs(WithoutAdapter(policy)), logprobs(base))
    assert (logprobs(policy) - logprobs(base)).abs().max() > 0.1, "and the adapter is on again"
    assert all(p.requires_grad for name, p in policy.named_parameters() if ".lora_" in name)


def test_checkpointed_activations_teach_the_same() -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = adapted().train()
        choose_layout(policy)
        if checkpointing:
            checkpoint_activations(policy)
        logprobs(policy).sum().backward()
        gradients.append([p.grad for p in policy.parameters() if p.requires_grad])
        assert all(p.grad is None for p in policy.parameters() if not p.requires_grad)
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


# Rollouts


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
@pytest.mark.parametrize("targets", [None, ["v_proj", "gate_proj"]], ids=["all", "some"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rollouts_are_the_merged_model_s(
    family: str, targets: list[str] | None, precision: str, tmp_path: Path
) -> None:
    policy = adapted(family, targets, tied=family == "qwen2")
    assert why_not_covered(policy) is None
    whole = merged(policy, tmp_path)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        ours, theirs = (sample(p, tokens=30, temperature=0.0) for p in (policy, whole))
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert torch.equal(ours.sampling_logprobs, theirs.sampling_logprobs)
    assert completions(ours) != completions(
        sample(tiny_model(family, tied=family == "qwen2"), tokens=30, temperature=0.0)
    )


def test_the_sampler_and_the_update_see_one_policy() -> None:
    policy = adapted().train()
    rollout = sample(policy, tokens=20)
    rescored = score(policy, sequences_of(rollout), 1.0).logprobs
    torch.testing.assert_close(rescored[rollout.mask], rollout.sampling_logprobs[rollout.mask], rtol=0, atol=2e-5)
    assert_same(sample_with(GenerateEngine, policy, tokens=20), rollout)
    assert policy.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thousand_refreshes_leave_the_base_as_it_was(dtype: torch.dtype) -> None:
    """Merging into the weights and taking it out again would not: rounding stays."""
    policy = adapted(initializer_range=0.02)
    weights = DecoderWeights(policy, dtype)
    first, base = state_of(weights), {name: p.detach().clone() for name, p in policy.named_parameters()}
    for cycle in range(1000):
        learn(policy, seed=cycle)
        weights.refresh()
    assert not torch.equal(state_of(weights), first), "the copy follows the adapter"
    learn(policy, seed=1)
    weights.refresh()
    assert torch.equal(state_of(weights), first), "and depends on nothing else"
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, base[name]), name


def state_of(weights: DecoderWeights) -> Tensor:
    linears = [linear for layer in weights.layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    return torch.cat([weight.detach().flatten().clone() for linear in linears for weight in linear.weights])


def test_a_copy_is_rounded_once_from_float32() -> None:
    policy = adapted()
    weights = DecoderWeights(policy, torch.bfloat16)
    layer = policy.model.layers[1].mlp.down_proj
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    exact = layer.base_layer.weight.double() + 2 * b @ a
    torch.testing.assert_close(merged_weight(layer).double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(weights.layers[1].down.weights[0], merged_weight(layer).bfloat16())


@pytest.mark.parametrize("state", ["merged", "off", "second"])
def test_an_adapter_that_somebody_else_has_changed_is_left_to_generate(state: str) -> None:
    policy = adapted()
    layer = policy.model.layers[0].self_attn.q_proj
    if state == "merged":
        layer.merge()
    elif state == "off":
        layer.enable_adapters(False)
    else:
        from peft import LoraConfig

        policy.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "second")
    reason = {"second": "a layer with other adapters"}.get(state, "a layer whose adapter is merged or off")
    assert why_not_covered(policy) == f"model.layers.0.self_attn.q_proj is {reason}"


# What cannot be


KNOWN = "Choose from down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "model.lora.r is 0; it must be at least 1"),
        ({"lora_alpha": 0}, "model.lora.lora_alpha is 0; it must be above 0"),
        (
            {"lora_dropout": 0.05},
            "model.lora.lora_dropout is 0.05; it must be 0: old and new log-probabilities come from the same network, "
            "and dropout would make their ratio noise",
        ),
        ({"target_modules": []}, "model.lora.target_modules is empty; name linear layers, or null for all of them"),
        (
            {"target_modules": ["q_proj", "query"]},
            f"model.lora.target_modules: 'query' cannot be adapted: the policy has no such module. {KNOWN}",
        ),
        (
            {"target_modules": ["lm_head"]},
            "model.lora.target_modules: 'lm_head' cannot be adapted: the output embedding is read as it is, without an "
            f"adapter. {KNOWN}",
        ),
        (
            {"target_modules": ["embed_tokens"]},
            "model.lora.target_modules: 'embed_tokens' cannot be adapted: it is a Embedding, not a linear layer. "
            f"{KNOWN}",
        ),
    ],
)
def test_what_cannot_be_adapted_is_named(
    settings: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any weight is loaded, and before the run has a folder."""
    flags = {f"model.lora.{key}": value for key, value in settings.items()}
    with pytest.raises(SystemExit) as stopped:
        main(tiny_run("embedded", tmp_path, **flags))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
    assert not list(tmp_path.iterdir())


def test_without_peft_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find(name, *a))
    message = "model.lora needs the package peft: pip install peft, or leave model.lora out"
    with pytest.raises(ConfigError) as refused:
        GroupPolicyModule("embedded", GRPO(), lora=LoRA())
    assert str(refused.value) == message
    GroupPolicyModule("embedded", GRPO())


def test_a_policy_without_linear_layers_is_refused() -> None:
    """GPT-2's are of a class of their own."""
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    with pytest.raises(ConfigError, match=r"this policy has no linear layers to adapt; leave model\.lora out"):
        check_targets(LoRA(), config)


def test_targets_may_be_paths() -> None:
    lora = LoRA(target_modules=["layers.1.mlp.up_proj", "v_proj"])
    paths = ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj"]
    assert lora.targets_in(tiny_model()) == paths
    check_targets(lora, tiny_model().config)


# Whole runs


ADAPTED: dict[str, Any] = {
    "model.loss": "GRPO",  # its beta is 0.04
    "model.lora.r": 4,
    "model.optimizer.lr": 0.02,
}


@pytest.fixture(scope="module")
def run(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    main(tiny_run(policy, folder, **ADAPTED))
    return folder / "run" / "version_0"


def test_a_checkpoint_holds_the_adapter_and_nothing_else(run: Path) -> None:
    state = last_state(run)
    layers = 2 * len(BODY)
    assert len(state["state_dict"]) == 2 * layers
    assert all(".lora_" in key for key in state["state_dict"])
    (optimizer,) = state["optimizer_states"]
    assert len(optimizer["state"]) == 2 * layers
    assert max(tensor.abs().max() for key, tensor in state["state_dict"].items() if "lora_B" in key) > 0.01


def test_the_reference_is_the_initial_policy(run: Path, policy: str) -> None:
    moved = read_scalars(run)["train/kl_ref"]
    assert 0 < moved[1] < moved[6]
    exact = read_scalars(run)["train/logprob_mismatch_max"]
    assert max(exact.values()) < 1e-5


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(run: Path, policy: str, tmp_path: Path) -> None:
    arguments = tiny_run(policy, tmp_path, **ADAPTED)
    interrupt = ["--trainer.callbacks=tests.helpers.runs.Interrupt", "--trainer.callbacks.during_rollout=2"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments + interrupt)
    assert stopped.value.code == 130
    main([*arguments, "--ckpt_path=last"])
    assert_same_run(tmp_path / "run" / "version_0", run)


def test_the_exported_model_is_merged_and_the_adapter_lies_beside_it(run: Path, policy: str) -> None:
    from peft import PeftModel

    whole = AutoModelForCausalLM.from_pretrained(run / "best_model")
    base = AutoModelForCausalLM.from_pretrained(policy)
    assert type(whole) is type(base)
    assert whole.generation_config.eos_token_id == base.generation_config.eos_token_id
    assert (run / "best_model" / "tokenizer.json").is_file()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        before = base(ids).logits
        apart = PeftModel.from_pretrained(base, run / "best_adapter")(ids).logits
        together = whole(ids).logits
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    assert (together - before).abs().max() > 1e-3


def test_chat_reads_the_adapter_of_a_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--question", "1 + 1 = ?", "--max_tokens", "10"]
    main(["chat", "--ckpt", str(run / "checkpoints" / "best.ckpt"), *asked])
    adapted = capsys.readouterr().out
    main(["chat", "--model", str(run / "best_model"), *asked])
    assert capsys.readouterr().out == adapted


def test_a_checkpoint_of_another_adapter_is_refused(
    run: Path, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_run(policy, tmp_path, **{**ADAPTED, "model.lora.r": 8})
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"])
    assert stopped.value.code == 2
    layers = ", ".join(sorted(BODY))
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: ckpt_path: the checkpoint was written with an adapter of r = 4 on {layers}, and this run has an "
        f"adapter of r = 8 on {layers}; give it the same model.lora"
    )


def test_an_adapter_stays_with_the_weights_that_it_has_learned_beside(
    run: Path, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another policy with the same shapes nothing else would tell."""
    other = make_tiny_policy(tmp_path / "other", seed=1)
    last = run / "checkpoints" / "last.ckpt"
    before = sorted(tmp_path.rglob("*"))
    for command in ("fit", "test"):
        arguments = [command, *tiny_run(other, tmp_path, **ADAPTED)[1:], f"--ckpt_path={last}"]
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--resume_point.allow_changes=true"])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            "error: ckpt_path: the checkpoint's adapter has learned beside other weights than those of model.policy "
            f"{other!r}; give the policy that it was trained from, as it was then: {policy!r}"
        )
        assert sorted(tmp_path.rglob("*")) == before

    with pytest.raises(SystemExit):
        main(["chat", f"--ckpt={last}", f"--model={other}", "--question=What is 1 + 1?"])
    assert "the checkpoint's adapter has learned beside other weights" in capsys.readouterr().err

    copy = shutil.copytree(policy, tmp_path / "copy")
    same = fingerprint(load_policy(str(copy), load_config(str(copy))))
    assert same == last_state(run)["base_weights"] != fingerprint(load_policy(other, load_config(other)))


def test_an_adapter_and_none_are_not_the_same() -> None:
    states = [p.state_dict() for p in (tiny_model(), adapted(targets=["q_proj"]))]
    shapes = [{key: tensor.shape for key, tensor in state.items()} for state in states]
    none, one = "no adapter (model.lora: null)", "an adapter of r = 4 on q_proj"
    with pytest.raises(ConfigError, match=re.escape(f"written with {none}, and this run has {one}")):
        check_same_adapter(states[0], shapes[1])
    with pytest.raises(ConfigError, match=re.escape(f"written with {one}, and this run has {none}")):
        check_same_adapter(states[1], shapes[0])


def test_arms_may_differ_in_their_adapters(tmp_path: Path) -> None:
    arms = {
        "full": {"model.loss": "GRPO"},
        "r4": {"model.loss": "GRPO", "model.lora.r": 4},
        "r8": {"model.loss": "GRPO", "model.lora.r": 8, "model.lora.target_modules": ["q_proj"]},
    }
    resolved = plan(tmp_path, arms=arms).resolved
    assert resolved["full"]["model.lora"] is None
    assert [resolved[arm]["model.lora.r"] for arm in ("r4", "r8")] == [4, 8]
    assert resolved["r8"]["model.lora.target_modules"] == ["q_proj"]
