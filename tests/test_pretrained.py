"""Loading a policy: what a name means, what is refused and how, and in which form the weights come."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from rlvr_pl.pretrained import (
    EMBEDDED_MODEL,
    constants_kept,
    find_model,
    load_config,
    load_policy,
    load_tokenizer,
    stop_token_ids,
)
from rlvr_pl.types import ConfigError
from tests.helpers.policies import tiny_model

REMEDY = ". Check the name and the network, or give the path of a downloaded folder, or 'embedded'"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 in bfloat16, with the embedded tokenizer; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    tiny_model(**shape, attention_dropout=0.25, eos_token_id=[5, 7]).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_MODEL).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(load: Callable[[], object]) -> str:
    """The message of the ConfigError that ``load`` raises: one line that names the key."""
    with pytest.raises(ConfigError) as error:
        load()
    message = str(error.value)
    assert message.startswith("model.policy: ")
    assert len(message.splitlines()) == 1
    return message


# What a name means.


def test_embedded_is_the_model_of_the_package() -> None:
    assert find_model("embedded") == str(EMBEDDED_MODEL)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (EMBEDDED_MODEL / file).is_file()


def test_a_folder_is_its_path(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model(str(saved)) == str(saved)
    monkeypatch.chdir(saved.parent)
    assert find_model(saved.name) == saved.name
    assert find_model(f"./{saved.name}") == saved.name
    monkeypatch.setenv("HOME", str(saved.parent))
    assert find_model(f"~/{saved.name}") == str(saved)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B-Instruct", "gpt2", "a/b.c-d"])
def test_a_hub_id_is_left_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model(name) == name


@pytest.mark.parametrize("name", ["/no/such/model", "/no", "./model", "../model", "~/no/model", "a/b/c"])
def test_a_path_where_nothing_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert refusal(lambda: find_model(name)) == f"model.policy: there is no folder {name!r}"


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    name = str(tmp_path)
    assert refusal(lambda: find_model(name)) == (
        f"model.policy: the folder {name!r} is not a model folder: it has no config.json"
    )


def test_a_file_is_no_model(saved: Path) -> None:
    name = str(saved / "model.safetensors")
    assert refusal(lambda: find_model(name)) == (
        f"model.policy: {name!r} is a file; give the folder that holds config.json and the weights"
    )


@pytest.mark.parametrize(
    "load",
    [
        load_config,
        load_tokenizer,
        lambda name: load_policy(name, Qwen2Config()),
    ],
    ids=["config", "tokenizer", "policy"],
)
def test_every_loader_refuses_what_find_model_refuses(load: Callable[[str], object]) -> None:
    assert refusal(lambda: load("/no/such/model")) == "model.policy: there is no folder '/no/such/model'"


@pytest.mark.parametrize(
    ("auto", "load"),
    [
        (AutoConfig, load_config),
        (AutoTokenizer, load_tokenizer),
        (AutoModelForCausalLM, lambda name: load_policy(name, Qwen2Config())),
    ],
    ids=["config", "tokenizer", "policy"],
)
@pytest.mark.parametrize("error", [OSError("We couldn't connect\nto the hub"), ValueError(" no such model \n\n!")])
def test_a_hub_that_does_not_deliver(
    auto: type, load: Callable[[str], object], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def from_pretrained(name: str, **_: Any) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    reason = str(error).strip().split("\n")[0]
    assert refusal(lambda: load("no/such")) == (
        "model.policy: cannot load 'no/such': it is neither a local folder nor available on the Hugging Face hub "
        f"({reason}){REMEDY}"
    )
    assert asked == ["no/such"]


# The configuration.


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"model_type": "nonesuch"}', "`nonesuch`"),
        ("{}", "`model_type`"),
        ('{"model_type": "qwen2"', "not a valid JSON file"),
        ("", "not a valid JSON file"),
    ],
)
def test_a_configuration_that_cannot_be_read(text: str, part: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    message = refusal(lambda: load_config(str(folder)))
    assert message.startswith(f"model.policy: cannot load {str(folder)!r}: ")
    assert part in message


@pytest.mark.parametrize("text", ['{"model_type": "qwen2", "hidden_size": "wide"}', "null"])
def test_a_configuration_with_a_wrong_value(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    refusal(lambda: load_config(str(folder)))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (Gemma2Config(), "final_logit_softcapping"),
        (CohereConfig(), "logit_scale"),
        (GraniteConfig(logits_scaling=8.0), "logits_scaling"),
    ],
)
def test_a_model_that_rescales_its_logits(config: PretrainedConfig, key: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert refusal(lambda: load_config(str(tmp_path))) == (
        f"model.policy: {str(tmp_path)!r} rescales its logits ({key}), which is not supported"
    )


@pytest.mark.parametrize(
    "config",
    [Gemma2Config(final_logit_softcapping=None), CohereConfig(logit_scale=1.0), GraniteConfig(logits_scaling=1.0)],
    ids=lambda config: config.model_type,
)
def test_a_factor_of_1_rescales_nothing(config: PretrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert load_config(str(tmp_path)).model_type == config.model_type


def test_dropout_is_off(saved: Path, tmp_path: Path) -> None:
    assert AutoConfig.from_pretrained(saved).attention_dropout == 0.25
    config = load_config(str(saved))
    assert config.attention_dropout == 0.0
    assert config.hidden_size == 16
    assert load_policy(str(saved), config).model.layers[0].self_attn.attention_dropout == 0.0
    for other, keys in (
        (GPT2Config(), ("attn_pdrop", "embd_pdrop", "resid_pdrop")),
        (OPTConfig(dropout=0.1, attention_dropout=0.2), ("dropout", "attention_dropout")),
    ):
        assert all(getattr(other, key) > 0 for key in keys)
        other.save_pretrained(tmp_path / other.model_type)
        assert [getattr(load_config(str(tmp_path / other.model_type)), key) for key in keys] == [0.0] * len(keys)


@pytest.mark.parametrize(
    ("model_type", "key"),
    [("biogpt", "hidden_dropout_prob"), ("biogpt", "attention_probs_dropout_prob"), ("opt", "layerdrop")],
)
def test_dropout_under_another_name_is_off(model_type: str, key: str, tmp_path: Path) -> None:
    AutoConfig.for_model(model_type, **{key: 0.1}).save_pretrained(tmp_path)
    assert getattr(load_config(str(tmp_path)), key) == 0.0


# The tokenizer.


def test_the_tokenizer_of_a_folder(saved: Path) -> None:
    tokenizer = load_tokenizer(str(saved))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.get_vocab() == load_tokenizer("embedded").get_vocab()


def test_a_tokenizer_without_an_end_of_sequence(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    settings["tokenizer_class"] = "TokenizersBackend"  # Qwen2's own class has a default
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert refusal(lambda: load_tokenizer(str(folder))) == (
        f"model.policy: the tokenizer of {str(folder)!r} has no end-of-sequence token"
    )


def test_a_tokenizer_that_cannot_be_read(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert refusal(lambda: load_tokenizer(str(folder))).startswith(f"model.policy: cannot load {str(folder)!r}: ")


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    refusal(lambda: load_tokenizer(str(folder)))


# The weights.


def test_the_policy_is_in_float32_whatever_the_files_hold(saved: Path) -> None:
    stored = load_file(saved / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    policy = load_policy(str(saved), load_config(str(saved)))
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    weights = policy.state_dict()
    assert stored.keys() <= weights.keys()
    for name, tensor in stored.items():
        assert torch.equal(weights[name], tensor.float())


def test_weights_are_loaded_on_the_host_whatever_device_is_the_default(saved: Path) -> None:
    """Lightning configures a model under the training device, which transformers would take for a device map."""
    with torch.device("meta"):
        policy = load_policy(str(saved), load_config(str(saved)))
    assert {tensor.device.type for tensor in [*policy.parameters(), *policy.buffers()]} == {"cpu"}


# Conversion


def test_conversion_keeps_what_a_model_computes_for_itself_and_converts_the_rest(saved: Path) -> None:
    policy = load_policy(str(saved), load_config(str(saved)))
    frequencies = policy.model.rotary_emb.inv_freq.clone()
    with constants_kept(policy):
        policy.to(torch.bfloat16)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    assert torch.equal(policy.model.rotary_emb.inv_freq, frequencies)
    assert policy.model.rotary_emb.inv_freq.dtype == torch.float32
    assert "model.rotary_emb.inv_freq" not in policy.state_dict(), "still no part of a checkpoint"
    with constants_kept(policy):
        policy.to("meta")
    assert policy.model.rotary_emb.inv_freq.device.type == "meta", "it moves with the others"


def test_conversion_rounds_a_buffer_that_a_checkpoint_holds() -> None:
    model = torch.nn.Module()
    model.register_buffer("held", torch.tensor([1.001]))
    model.register_buffer("computed", torch.tensor([1.001]), persistent=False)
    model.register_buffer("count", torch.tensor([257]), persistent=False)
    with constants_kept(model):
        model.to(torch.bfloat16)
    assert (model.held.dtype, model.computed.dtype, model.count.dtype) == (torch.bfloat16, torch.float32, torch.int64)
    assert model.computed.item() == torch.tensor(1.001).item()


# The embedded policy


def test_the_embedded_policy() -> None:
    config = load_config("embedded")
    policy = load_policy("embedded", config)
    assert policy.config.model_type == "qwen2"
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    tokenizer = load_tokenizer("embedded")
    assert policy.get_input_embeddings().weight.shape == (len(tokenizer), config.hidden_size)
    stops = stop_token_ids(policy, tokenizer)
    assert set(tokenizer.convert_ids_to_tokens(list(stops))) == {"<|im_end|>", "<|endoftext|>"}  # as in Qwen2.5


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    message = refusal(lambda: load_policy(str(folder), load_config(str(folder))))
    assert message.startswith(f"model.policy: cannot load {str(folder)!r}: ")
    assert "no file named model.safetensors" in message


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_weights_that_were_cut_off(kept: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refusal(lambda: load_policy(str(folder), load_config(str(folder))))


def test_weights_that_lack_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refusal(lambda: load_policy(str(folder), load_config(str(folder))))


def test_weights_of_another_shape(folder: Path) -> None:
    config = load_config(str(folder))
    config.intermediate_size = 32
    refusal(lambda: load_policy(str(folder), config))


# The ends of a completion.


@pytest.mark.parametrize(
    ("configured", "stops"),
    [
        (9, (9, 2)),
        ([9, 3], (9, 3, 2)),
        ([2, 9], (2, 9)),
        ([9, 9, 2], (9, 2)),
        (2, (2,)),
        (0, (0, 2)),
        ([], (2,)),
        (None, (2,)),
    ],
)
def test_stop_tokens(configured: int | list[int] | None, stops: tuple[int, ...]) -> None:
    policy: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured))
    tokenizer: Any = SimpleNamespace(eos_token_id=2)
    assert stop_token_ids(policy, tokenizer) == stops


def test_stop_tokens_of_a_model_without_a_generation_config(tokenizer: PreTrainedTokenizerBase) -> None:
    policy: Any = SimpleNamespace(generation_config=None)
    assert stop_token_ids(policy, tokenizer) == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("with_file", [True, False])
def test_stop_tokens_of_a_loaded_policy(with_file: bool, folder: Path) -> None:
    """From generation_config.json, or from config.json where there is none; the tokenizer's come last."""
    generation_config = folder / "generation_config.json"
    generation_config.unlink()
    if with_file:
        generation_config.write_text('{"eos_token_id": [11, 5]}')
    policy = load_policy(str(folder), load_config(str(folder)))
    end = load_tokenizer(str(folder)).eos_token_id
    assert stop_token_ids(policy, load_tokenizer(str(folder))) == ((11, 5, end) if with_file else (5, 7, end))
