"""Reading, cleaning, remembering and parking; agreement with transformers is tested in `tests/parity`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.umt5 import UMT5TextEncoder, clean_prompt
from lightning_action.frozen.wan_vae import WanVideoVAE
from tests.support.wan_parts import WORDS, original_umt5_name, small_umt5, write_word_tokenizer

PROMPTS = ["a red disc", "", "the quick fox moves left and right"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_umt5().save_pretrained(tmp_path / "text_encoder")
    write_word_tokenizer(tmp_path / "tokenizer")
    return tmp_path


def counting_encoder(folder: Path, **options: Any) -> tuple[UMT5TextEncoder, list[tuple[int, ...]]]:
    """A loaded encoder, and a list that grows by the tokens' shape whenever its network runs."""
    encoder = UMT5TextEncoder(str(folder), dtype="float32", **options)
    encoder.load()
    runs: list[tuple[int, ...]] = []
    encoder._model.register_forward_pre_hook(lambda model, arguments: runs.append(tuple(arguments[0].shape)))
    return encoder, runs


def original_tensors(model: Any) -> dict[str, Tensor]:
    tied = "encoder.embed_tokens.weight"
    return {original_umt5_name(name): tensor for name, tensor in model.state_dict().items() if name != tied}


def in_folder(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    write_word_tokenizer(path)
    return path


def in_shards(model: Any, path: Path) -> Path:
    model.save_pretrained(path / "text_encoder", max_shard_size="8KB")
    assert (path / "text_encoder" / "model.safetensors.index.json").is_file()
    write_word_tokenizer(path / "tokenizer")
    return path


def in_safetensors(model: Any, path: Path) -> Path:
    tensors = model.state_dict()
    del tensors["encoder.embed_tokens.weight"]
    save_file(tensors, path / "any name.safetensors")
    write_word_tokenizer(path)
    return path / "any name.safetensors"


def in_original_pickle(model: Any, path: Path) -> Path:
    torch.save(original_tensors(model), path / "models_t5_umt5-xxl-enc-bf16.pth")
    # The generator's, in a release.
    (path / "config.json").write_text('{"_class_name": "WanModel", "dim": 1536}')
    write_word_tokenizer(path / "google" / "umt5-xxl")
    return path / "models_t5_umt5-xxl-enc-bf16.pth"


def in_original_release(model: Any, path: Path) -> Path:
    return in_original_pickle(model, path).parent


@pytest.mark.parametrize("write", [in_folder, in_shards, in_safetensors, in_original_pickle, in_original_release])
def test_every_format_gives_the_same_network(write: Callable[[Any, Path], Path], tmp_path: Path) -> None:
    theirs = small_umt5(num_layers=3, relative_attention_num_buckets=8)
    ours = UMT5TextEncoder(str(write(theirs, tmp_path)), dtype="float32")
    ours.load()
    stored, loaded = theirs.state_dict(), ours._model.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    assert ours._model.shared.weight is ours._model.encoder.embed_tokens.weight
    assert not any(parameter.requires_grad for parameter in ours._model.parameters())
    assert ours.encode(PROMPTS).shape == (3, 8, 20)


def test_the_release_folder_is_looked_in_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path))
    encoder = UMT5TextEncoder()
    with pytest.raises(FileNotFoundError, match="text_encoder or models_t5_umt5-xxl-enc-bf16.pth"):
        encoder.load()
    in_original_pickle(small_umt5(), tmp_path)
    assert encoder.encode(["a"]).shape == (1, 2, 20)


def test_its_checksum_is_that_of_every_bit_of_its_weights(folder: Path) -> None:
    encoder, same = (UMT5TextEncoder(str(folder), dtype="float32") for _ in range(2))
    assert encoder.checksum() == same.checksum()
    same._model.shared.weight[0, 0] *= 1 + 2**-20
    assert encoder.checksum() != same.checksum()


def test_files_of_its_tokenizer_have_checksums_of_their_own(folder: Path) -> None:
    encoder = UMT5TextEncoder(str(folder), dtype="float32")
    before, found = encoder.checksum(), encoder.tokenizer_checksums()
    assert "tokenizer.json" in found and {len(value) for value in found.values()} == {64}
    (file,) = folder.glob("**/tokenizer.json")
    file.write_text(file.read_text() + "\n")
    assert encoder.tokenizer_checksums() == found, "what was read counts"
    other = UMT5TextEncoder(str(folder), dtype="float32")
    changed = {name for name, value in other.tokenizer_checksums().items() if value != found[name]}
    assert changed == {"tokenizer.json"} and other.checksum() == before


def test_the_tokenizer_may_lie_anywhere(tmp_path: Path) -> None:
    small_umt5().save_pretrained(tmp_path / "weights")
    write_word_tokenizer(tmp_path / "elsewhere")
    encoder = UMT5TextEncoder(str(tmp_path / "weights"), tokenizer=str(tmp_path / "elsewhere"))
    assert encoder.encode(["a red disc"]).shape == (1, 4, 20)


def test_nothing_is_read_before_it_is_needed(folder: Path) -> None:
    encoder = UMT5TextEncoder(str(folder / "not yet"), dtype="float32")
    encoder.to(torch.device("cpu"))
    (folder / "not yet").symlink_to(folder)
    assert encoder.encode(["a"]).shape == (1, 2, 20)


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("  a\tred \n\n disc ", "a red disc"),
        ("a &lt;b&gt; &amp;amp; c&nbsp;d", "a <b> & c d"),
        ("caf\u00c3\u00a9 \u00e2\u20ac\u0153x\u00e2\u20ac\u009d", 'café "x"'),
        ("Ａ\u3000b", "A b"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(written: str, cleaned: str) -> None:
    assert clean_prompt(written) == cleaned


def test_a_prompt_is_encoded_once_whatever_it_comes_with(folder: Path) -> None:
    encoder, runs = counting_encoder(folder)
    first = encoder.encode(["a red disc", "left", "a  red disc "])
    assert runs == [(1, 4), (1, 2)]
    assert torch.equal(first[0], first[2])
    again = encoder.encode(["left", "the", "a red disc"])
    assert runs == [(1, 4), (1, 2), (1, 2)]
    assert torch.equal(again[2], first[0])
    assert torch.equal(again[0], first[1])
    assert not first[1, 2:].any() and first[1, :2].all()


def test_what_is_remembered_is_trimmed_bounded_and_apart(folder: Path) -> None:
    encoder, runs = counting_encoder(folder, num_remembered=2)
    encoder.encode(["a", "red disc"]).zero_()
    encoder.encode(["a"])
    assert len(runs) == 2 and encoder.encode(["a"]).all()
    assert {prompt: len(vectors) for prompt, vectors in encoder._remembered.items()} == {"red disc": 3, "a": 2}
    # "red disc" was asked for before "a".
    encoder.encode(["left"])
    encoder.encode(["a"])
    assert len(runs) == 3
    encoder.encode(["red disc"])
    assert len(runs) == 4
    # A batch of more prompts than are kept is whole.
    many = encoder.encode([*WORDS])
    assert many.shape == (len(WORDS), 2, 20)
    assert len(encoder._remembered) == 2


def test_prompts_are_cut_at_text_len_and_keep_their_end(folder: Path) -> None:
    encoder = UMT5TextEncoder(str(folder), text_len=5, dtype="float32")
    encoded = encoder.encode(["a red disc moves left and right", "a red disc moves"])
    assert encoded.shape == (2, 5, 20)
    assert torch.equal(encoded[0], encoded[1])


def test_bfloat16_is_the_default_and_near_float32(folder: Path) -> None:
    half, full = UMT5TextEncoder(str(folder)), UMT5TextEncoder(str(folder), dtype="float32")
    encoded, expected = half.encode(PROMPTS), full.encode(PROMPTS)
    assert encoded.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.bfloat16}
    assert 0 < (encoded - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_trainers_autocast_changes_nothing(folder: Path) -> None:
    expected = UMT5TextEncoder(str(folder), dtype="float32").encode(PROMPTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(UMT5TextEncoder(str(folder), dtype="float32").encode(PROMPTS), expected)


@pytest.mark.parametrize(("low_memory", "expected"), [(True, ["move", "run", "move"]), (False, ["move", "run"])])
def test_low_memory_moves_the_weights_back_after_encoding(
    folder: Path, low_memory: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _ = counting_encoder(folder, low_memory=low_memory)
    events: list[str] = []
    monkeypatch.setattr(encoder._model, "to", lambda device: events.append("move"))
    encoder._model.register_forward_hook(lambda *_: events.append("run"))
    encoder.encode(["a"])
    assert events == expected
    encoder.encode(["a"])
    assert events == expected


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_holder_moves_the_weights_unless_memory_is_low(folder: Path, low_memory: bool) -> None:
    encoder, _ = counting_encoder(folder, low_memory=low_memory)
    frozen = FrozenParts(encoder, WanVideoVAE("nowhere"))
    frozen.encode_text(["a"])
    remembered = frozen.encode_text(["a"], "meta")
    assert encoder._model.device.type == ("cpu" if low_memory else "meta")
    # What is remembered needs no weights.
    assert remembered.device.type == "meta"


def test_what_was_encoded_in_inference_mode_can_be_trained_on(folder: Path) -> None:
    encoder = UMT5TextEncoder(str(folder), dtype="float32")
    with torch.inference_mode():
        inside = encoder.encode(PROMPTS)
    encoder.to(torch.device("cpu"))
    outside = encoder.encode(PROMPTS)
    assert torch.equal(inside, outside)
    weight = torch.ones(20, requires_grad=True)
    (outside * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
def test_missing_tokenizer_files_are_told(folder: Path, left: list[str]) -> None:
    for file in (folder / "tokenizer").iterdir():
        if file.name not in left:
            file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*: expected tokenizer.json or spiece.model.*google"):
        UMT5TextEncoder(str(folder)).load()


def test_a_tokenizer_that_was_given_is_not_replaced_by_another(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no tokenizer in {folder}/other: "):
        UMT5TextEncoder(str(folder), tokenizer=str(folder / "other")).load()


def test_a_damaged_tokenizer_is_told(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(ValueError, match="the tokenizer in .*tokenizer cannot be read"):
        UMT5TextEncoder(str(folder)).load()


@pytest.mark.parametrize("changes", [{"text_len": 0}, {"text_len": -1}, {"text_len": 2.5}, {"num_remembered": -1}])
def test_numbers_that_cannot_be_meant_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be a whole number"):
        UMT5TextEncoder(**changes)


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    in_folder(small_umt5(vocab_size=10), tmp_path)
    with pytest.raises(ValueError, match="knows 10 tokens, the tokenizer has 14"):
        UMT5TextEncoder(str(tmp_path)).load()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    tensors = original_tensors(small_umt5())
    del tensors["blocks.1.ffn.fc2.weight"]
    tensors["blocks.1.surprise"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    write_word_tokenizer(tmp_path / "google" / "umt5-xxl")
    with pytest.raises(ValueError, match=r"1 missing: encoder.block.1.layer.1.DenseReluDense.wo.*1 unexpected: .*surp"):
        UMT5TextEncoder(str(tmp_path)).load()
    save_file({"blocks.0.modulation": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no UMT5 encoder: it has no tensor"):
        UMT5TextEncoder(str(tmp_path / "other.safetensors")).load()


def test_missing_weights_are_told(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*text_encoder"):
        UMT5TextEncoder(str(folder)).load()


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        UMT5TextEncoder(str(folder)).load()
