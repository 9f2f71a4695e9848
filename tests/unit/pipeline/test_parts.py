"""A pipeline from released weights, and from a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_action import (
    ActionCausalInferencePipeline,
    ActionModulationProjection,
    BlockCausality,
    load_run,
)
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.checkpoints.adapter import write_adapter
from lightning_action.checkpoints.export import export_generator
from lightning_action.checkpoints.lora import LoRASettings, inject_lora, split_parameters
from lightning_action.diffusion.noise import frame_noise
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.frozen.umt5 import UMT5TextEncoder
from lightning_action.frozen.wan_vae import WanVideoVAE
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.release import RELEASE_VARIABLE
from tests.support.small_generator import fill, small_generator
from tests.support.written_run import write_run

SIZES: dict[str, Any] = {"in_dim": 5, "out_dim": 5, "patch_size": (1, 2, 1), "freq_dim": 14, "text_dim": 9}
NOISE = torch.randn(1, 3, 5, 4, 3, generator=torch.Generator().manual_seed(3))


def standard_generator() -> CausalWanModel:
    """Two heads of width 128, as released models have: its size follows from its tensors."""
    torch.manual_seed(0)
    generator = CausalWanModel(256, 20, 2, 2, **SIZES)
    fill(generator)
    return generator.eval()


def frozen_parts() -> dict[str, Any]:
    vae = LinearVideoCodec(5, patch_size=2)
    vae.fit(torch.randn(2, 9, 3, 8, 6, generator=torch.Generator().manual_seed(4)))
    return {"text_encoder": HashingTextEncoder(9, 7), "vae": vae}


def video(made: ActionCausalInferencePipeline) -> Tensor:
    return made.inference(NOISE, ["a red disc"])


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A release with an original name, and beside it what a training run of the family nests."""
    save_file(standard_generator().state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    nested = {"generator_ema": {f"model.{name}": t.half() for name, t in standard_generator().state_dict().items()}}
    torch.save(nested, tmp_path / "model.pt")
    return tmp_path


def test_the_size_of_a_released_generator_follows_from_its_tensors(released: Path) -> None:
    made = ActionCausalInferencePipeline.from_checkpoint(
        released / "diffusion_pytorch_model.safetensors", **frozen_parts()
    )
    assert (made.generator.dim, made.generator.num_layers, made.generator.num_heads) == (256, 2, 2)
    expected = ActionCausalInferencePipeline(standard_generator(), **frozen_parts())
    assert torch.equal(video(made), video(expected))
    unlike = ActionCausalInferencePipeline(CausalWanModel(256, 20, 2, 2, **SIZES), **frozen_parts())
    assert not torch.equal(video(made), video(unlike))


def test_precision_is_that_of_the_file_unless_said(released: Path) -> None:
    path = released / "model.pt"
    half = ActionCausalInferencePipeline.from_checkpoint(path, **frozen_parts())
    full = ActionCausalInferencePipeline.from_checkpoint(path, dtype=torch.float32, **frozen_parts())
    assert {p.dtype for p in half.parameters()} == {torch.float16}, "the new action projection too"
    assert {p.dtype for p in full.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.complex64, "bfloat16"])
def test_a_precision_that_nothing_is_computed_in_is_refused(released: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"one of torch.float32, .*got dtype"):
        ActionCausalInferencePipeline.from_checkpoint(released, dtype=dtype, **frozen_parts())


def test_a_generator_that_is_given_keeps_its_precision(released: Path) -> None:
    generator = ActionCausalInferencePipeline.from_checkpoint(released, **frozen_parts()).generator
    with pytest.raises(ValueError, match="keeps its dtype"):
        ActionCausalInferencePipeline.from_checkpoint(released, generator=generator, dtype=torch.bfloat16)


def test_the_environment_names_a_release(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RELEASE_VARIABLE, str(released))
    made = ActionCausalInferencePipeline.from_checkpoint(None, **frozen_parts())
    expected = ActionCausalInferencePipeline(standard_generator(), **frozen_parts())
    assert torch.equal(video(made), video(expected))


def test_a_generator_that_tensors_do_not_describe_is_given(tmp_path: Path) -> None:
    save_file(small_generator().state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="give num_heads"):
        ActionCausalInferencePipeline.from_checkpoint(tmp_path / "tiny.safetensors", **frozen_parts())
    made = ActionCausalInferencePipeline.from_checkpoint(
        tmp_path / "tiny.safetensors", generator=small_generator(seed=1), **frozen_parts()
    )
    assert torch.equal(video(made), video(ActionCausalInferencePipeline(small_generator(), **frozen_parts())))


def test_an_export_describes_a_generator_that_tensors_do_not(tmp_path: Path) -> None:
    generator = small_generator(preconditioned=True, text_len=512)
    export_generator(generator, tmp_path / "tiny")
    made = ActionCausalInferencePipeline.from_checkpoint(tmp_path / "tiny", **frozen_parts())
    assert made.generator.traits == generator.traits
    assert torch.equal(video(made), video(ActionCausalInferencePipeline(generator, **frozen_parts())))


@pytest.mark.parametrize("outer", ["state_dict", "ema_state_dict"])
def test_the_checkpoint_of_a_run_needs_its_configuration(outer: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({outer: {f"generator.{n}": t for n, t in standard_generator().state_dict().items()}}, path)
    with pytest.raises(ValueError, match=r"last\.ckpt is the checkpoint of a run.*config_fit\.yaml"):
        ActionCausalInferencePipeline.from_checkpoint(path, **frozen_parts())
    given = ActionCausalInferencePipeline.from_checkpoint(
        path, generator=CausalWanModel(256, 20, 2, 2, **SIZES), **frozen_parts()
    )
    assert torch.equal(video(given), video(ActionCausalInferencePipeline(standard_generator(), **frozen_parts())))


@pytest.mark.parametrize("inside", [False, True])
def test_actions_of_a_fork_are_not_left_aside_in_silence(inside: bool, tmp_path: Path) -> None:
    path, projection = tmp_path / "model.pt", ActionModulationProjection(3, 256, hidden_dim=10)
    generator = {f"model.{name}": tensor for name, tensor in standard_generator().state_dict().items()}
    if inside:
        generator |= {f"model.action_projection.{name}": t for name, t in projection.state_dict().items()}
    outside = {} if inside else {"action_projection": projection.state_dict()}
    torch.save({"generator": generator, **outside}, path)
    with pytest.warns(UserWarning, match="not its action projection .*load_action_projection"):
        ActionCausalInferencePipeline.from_checkpoint(path, **frozen_parts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ActionCausalInferencePipeline.from_checkpoint(path, action_projection=projection, **frozen_parts())


@pytest.mark.parametrize(("channels", "ratio"), [(16, 8), (48, 16)])
def test_text_encoder_and_vae_are_those_of_wan_and_read_nothing_yet(tmp_path: Path, channels: int, ratio: int) -> None:
    generator = CausalWanModel(128, 12, 1, 1, **{**SIZES, "in_dim": channels, "out_dim": channels})
    save_file(generator.state_dict(), tmp_path / "model.safetensors")
    made = ActionCausalInferencePipeline.from_checkpoint(tmp_path)
    assert isinstance(made.frozen.text_encoder, UMT5TextEncoder) and isinstance(made.frozen.vae, WanVideoVAE)
    assert made.frozen.vae.latent_shape(480, 832) == (channels, 480 // ratio, 832 // ratio)
    with pytest.raises(FileNotFoundError, match=RELEASE_VARIABLE):
        made.inference(torch.zeros(1, 3, channels, 4, 3), ["a red disc"])


PROJECTIONS: list[dict[str, Any]] = [
    {"hidden_dim": 20},
    {"hidden_dim": 20, "num_fourier_bands": 3, "lowest_band": 0.7, "slot_scales": [1, 1, 0.2, 1, 1, 0.3]},
    {"num_fourier_bands": 2, "include_raw_actions": False, "num_layers": 2, "layer_rank": 8},
    {"hidden_dim": 16, "num_layers": 2, "layer_rank": 6, "action_modulation_scale": 0.7},
]


@pytest.mark.parametrize("options", PROJECTIONS)
@pytest.mark.parametrize("rank", [None, 3])
def test_an_adapter_brings_projection_schema_and_lora(
    released: Path, options: dict[str, Any], rank: int | None
) -> None:
    base, schema = released / "diffusion_pytorch_model.safetensors", ActionSchema([ActionPart(size=1)])
    generator, projection = standard_generator(), ActionModulationProjection(4, 256, **options)
    fill(projection)
    if rank is not None:
        inject_lora(generator, LoRASettings(rank))
        fill(nn.ParameterList(split_parameters(generator)[0].values()))
    trained = ActionCausalInferencePipeline(generator, **frozen_parts(), action_projection=projection, schema=schema)
    write_adapter(released / "adapter.safetensors", generator, projection, schema)
    made = ActionCausalInferencePipeline.from_checkpoint(
        base, adapter=released / "adapter.safetensors", **frozen_parts()
    )
    assert made.schema == schema
    inputs = made.encode_actions(torch.rand(1, 8, 1, generator=torch.Generator().manual_seed(5)), 3)
    out, expected = (one.inference(NOISE, ["a red disc"], action_inputs=inputs) for one in (made, trained))
    torch.testing.assert_close(out, expected, atol=0 if rank is None else 1e-5, rtol=0)
    assert (out - video(made)).abs().max() > 1e-2
    plain = ActionCausalInferencePipeline.from_checkpoint(base, **frozen_parts())
    assert torch.equal(video(plain), video(made)) == (rank is None)


def test_an_adapter_of_another_base_is_refused_unless_told(released: Path) -> None:
    projection = ActionModulationProjection(4, 256, hidden_dim=20)
    write_adapter(released / "other.safetensors", small_generator(), projection, ActionSchema([ActionPart(size=1)]))
    options = {"path": released / "model.pt", "adapter": released / "other.safetensors", **frozen_parts()}
    with pytest.raises(ValueError, match="was trained on another base model"):
        ActionCausalInferencePipeline.from_checkpoint(**options)
    made = ActionCausalInferencePipeline.from_checkpoint(**options, any_base=True)
    assert {p.dtype for p in made.parameters()} == {torch.float16}


def test_a_run_without_its_configuration_is_told(tmp_path: Path) -> None:
    _, path = write_run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no configuration at '.*none\.yaml': give the config_fit\.yaml"):
        ActionCausalInferencePipeline.from_checkpoint(path, config=tmp_path / "none.yaml")


def test_a_run_brings_everything(tmp_path: Path) -> None:
    config, path = write_run(tmp_path)
    made = ActionCausalInferencePipeline.from_checkpoint(path, config=config)
    module = load_run(config, path)
    rows = torch.rand(2, 12, 2, generator=torch.Generator().manual_seed(8)) * 2 - 1
    batch = {
        "action": rows,
        "prompt": ["a red disc", "two"],
        "sample_id": torch.tensor([0, 1]),
        "frame_size": torch.tensor([[16, 24]] * 2),
    }
    noise = frame_noise(5, (0, 1), (7, 4, 6))(range(4), 0)
    out = made.inference(noise, batch["prompt"], action_inputs=made.encode_actions(rows, 4))
    assert torch.equal(out, module.generate(batch)) and out.shape == (2, 13, 3, 16, 24)
    without = {key: value for key, value in batch.items() if key != "action"}
    inferred = made.inference(noise, batch["prompt"])
    assert torch.equal(inferred, module.generate({**without, "num_latents": 4}))
    assert torch.equal(inferred[:, :5], module.generate({**batch, "action": None, "num_latents": 4})[:, :5])
    assert not torch.equal(inferred, out)
    other = ActionCausalInferencePipeline.from_checkpoint(path, config=config, causality=BlockCausality(1))
    assert other.causality.num_frame_per_block == 1 and made.causality.num_frame_per_block == 2


def test_a_run_needs_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the path of its checkpoint too"):
        ActionCausalInferencePipeline.from_checkpoint(None, config=tmp_path / "config_fit.yaml")


def test_a_run_brings_its_own_generator(tmp_path: Path) -> None:
    for other in ({"dtype": torch.float16}, {"generator": small_generator()}):
        with pytest.raises(ValueError, match="a run brings its generator"):
            ActionCausalInferencePipeline.from_checkpoint("last.ckpt", config=tmp_path / "config_fit.yaml", **other)
