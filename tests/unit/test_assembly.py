from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lightning_action import ActionModulationProjection, ActionPart, ActionSchema, LinearVideoCodec
from lightning_action.assembly import Factories, InitialWeights, find_schema
from lightning_action.checkpoints.adapter import write_adapter
from lightning_action.checkpoints.lora import LoRASettings, base_state_dict, lora_state_dict
from lightning_action.checkpoints.run_format import RunEntries
from lightning_action.distributed.sharding import Sharding
from lightning_action.weights.safetensors_files import write_safetensors
from tests.support.small_generator import fill, small_generator

SHARDING = Sharding(param_dtype="float32")
LORA = LoRASettings(rank=3, target_modules=["q", "ffn.0"])
SCHEMA = ActionSchema()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "generator.safetensors"
    write_safetensors(path, small_generator(seed=5).state_dict(), {"fit_seconds": "7.5"})
    return str(path)


def build_projection(action_dim: int, dim: int) -> ActionModulationProjection:
    return ActionModulationProjection(action_dim, dim, hidden_dim=20)


def factories(**changes: Any) -> Factories:
    settings: dict[str, Any] = {
        "generator": small_generator,
        "action_projection": build_projection,
        "action_module": lambda: nn.Linear(3, 2),
        "lora": None,
        "train_backbone": True,
        "seed": 4,
    }
    return Factories(**{**settings, **changes})


def initial(**changes: Any) -> InitialWeights:
    return InitialWeights(**{"generator": None, "lora": None, "adapter": None, "any_base": False, **changes})


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(whole(ours[name]), whole(theirs[name]))] == []


@pytest.mark.parametrize("lora", [None, LORA], ids=["without_lora", "with_lora"])
def test_weights_that_follow_are_the_same_sharded_or_not(
    weights: str, mesh: DeviceMesh, lora: LoRASettings | None
) -> None:
    generators = [factories(lora=lora).build_generator(each, SHARDING, weights_follow=True) for each in (None, mesh)]
    for generator in generators:
        report = initial(generator=weights).load(generator, None, SCHEMA)
        assert report.fit_seconds == 7.5 and len(report.tensors) == len(small_generator().state_dict())
    assert all(isinstance(parameter, DTensor) for parameter in generators[1].parameters())
    assert_same(base_state_dict(generators[0]), small_generator(seed=5).state_dict())
    assert_same(base_state_dict(generators[1]), small_generator(seed=5).state_dict())
    assert_same(lora_state_dict(generators[0]), lora_state_dict(generators[1]))


def test_lora_starts_as_the_identity_from_the_seed_alone() -> None:
    states = [
        lora_state_dict(factories(lora=LORA, seed=seed).build_generator(None, SHARDING, follow))
        for seed, follow in ((4, False), (4, True), (5, True))
    ]
    assert_same(states[0], states[1])
    up = {name: tensor for name, tensor in states[0].items() if "lora_B" in name}
    down = {name: tensor for name, tensor in states[0].items() if "lora_A" in name}
    assert up and not any(tensor.any() for tensor in up.values())
    assert down and all(tensor.any() and not torch.equal(tensor, states[2][name]) for name, tensor in down.items())


@pytest.mark.parametrize("lora", [None, LORA], ids=["without_lora", "with_lora"])
@pytest.mark.parametrize("follow", [False, True])
def test_a_backbone_that_never_trains(weights: str, mesh: DeviceMesh, lora: LoRASettings | None, follow: bool) -> None:
    for each in (None, mesh):
        generator = factories(lora=lora, train_backbone=False).build_generator(each, SHARDING, follow)
        if follow:
            initial(generator=weights).load(generator, None, SCHEMA)
        trained = {name for name, parameter in generator.named_parameters() if parameter.requires_grad}
        assert bool(trained) == (lora is not None) and all(".lora_" in name for name in trained)


def test_no_network_depends_on_how_another_was_built() -> None:
    def projection(generator: Any) -> dict[str, torch.Tensor]:
        made = factories(generator=generator)
        generator_of_it = made.build_generator(None, SHARDING, False)
        built = made.build_action_projection(generator_of_it, SCHEMA.action_dim, None, SHARDING)
        assert built is not None
        return built.state_dict()

    assert_same(projection(small_generator), projection(lambda: small_generator(num_layers=3)))


@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_projection_for_other_layers_is_refused(num_layers: int) -> None:
    made = factories(action_projection=lambda *sizes: ActionModulationProjection(*sizes, 20, num_layers=num_layers))
    message = f"action_projection has num_layers {num_layers}, the generator has num_layers 2: give both the same"
    with pytest.raises(ValueError, match=message):
        made.build_action_projection(small_generator(), SCHEMA.action_dim, None, SHARDING)
    fitting = small_generator(num_layers=num_layers)
    assert made.build_action_projection(fitting, SCHEMA.action_dim, None, SHARDING) is not None


def test_the_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    made = factories(lora=LORA)
    made.build_action_projection(made.build_generator(None, SHARDING, False), SCHEMA.action_dim, None, SHARDING)
    made.build_action_module(None, SHARDING)
    assert torch.equal(torch.rand(3), expected)


def test_parts_that_are_not_asked_for_are_not_built(mesh: DeviceMesh) -> None:
    made = factories(action_projection=None, action_module=None)
    assert made.build_action_projection(small_generator(), SCHEMA.action_dim, mesh, SHARDING) is None
    assert made.build_action_module(mesh, SHARDING) is None


def test_all_that_trains_is_sharded(mesh: DeviceMesh) -> None:
    for part in (
        factories().build_action_projection(small_generator(), SCHEMA.action_dim, mesh, SHARDING),
        factories().build_action_module(mesh, SHARDING),
    ):
        assert part is not None and all(isinstance(parameter, DTensor) for parameter in part.parameters())


@pytest.mark.parametrize("sharded", [False, True])
def test_an_adapter_goes_on_top_of_its_base(
    weights: str, tmp_path: Path, request: pytest.FixtureRequest, sharded: bool
) -> None:
    trained = build_projection(SCHEMA.action_dim, 36)
    fill(trained, seed=3)
    write_adapter(tmp_path / "adapter.safetensors", small_generator(seed=5), trained, SCHEMA)
    mesh = request.getfixturevalue("mesh") if sharded else None
    generator = factories().build_generator(mesh, SHARDING, True)
    projection = factories().build_action_projection(small_generator(), SCHEMA.action_dim, mesh, SHARDING)
    assert projection is not None
    start = initial(generator=weights, adapter=str(tmp_path / "adapter.safetensors"))
    start.load(generator, projection, SCHEMA)
    assert_same(projection.state_dict(), trained.state_dict())
    with pytest.raises(ValueError, match="needs an action_projection"):
        start.load(generator, None, SCHEMA)


def test_what_belongs_to_a_generator_needs_one() -> None:
    with pytest.raises(ValueError, match="belong to a pretrained generator"):
        initial(adapter="a.safetensors")


def test_the_release_is_a_folder_that_the_environment_names(
    weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "diffusion_pytorch_model.safetensors").symlink_to(weights)
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path))
    generator = factories().build_generator(None, SHARDING, True)
    initial(generator="release").load(generator, None, SCHEMA)
    assert_same(generator.state_dict(), small_generator(seed=5).state_dict())


VAE = LinearVideoCodec(5, 4)


class Measured:
    action_schema = ActionSchema([ActionPart("x", size=3)])


def test_the_schema_is_that_of_checkpoint_adapter_or_data(tmp_path: Path) -> None:
    assert find_schema(None, None, Measured(), takes_actions=True, vae=VAE) is Measured.action_schema
    assert find_schema(None, None, None, takes_actions=False, vae=VAE) == ActionSchema(temporal_compression_ratio=4)
    with pytest.raises(ValueError, match="schema: auto takes what an action is from the data, and NoneType says noth"):
        find_schema(None, None, None, takes_actions=True, vae=VAE)
    other = ActionSchema([ActionPart("y", size=4)])
    checkpoint: dict[str, Any] = {}
    RunEntries(other, {}, 0.0).write(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert find_schema(tmp_path / "last.ckpt", None, Measured(), takes_actions=True, vae=VAE) == other
    projection = ActionModulationProjection(other.action_dim, 24, 20)
    write_adapter(tmp_path / "a.safetensors", small_generator(), projection, other)
    assert find_schema(None, tmp_path / "a.safetensors", Measured(), takes_actions=True, vae=VAE) == other
    other_vae = LinearVideoCodec(5, 4, 3)
    for adapter in (tmp_path / "a.safetensors", None):
        with pytest.raises(ValueError, match="temporal_compression_ratio is 4, that of the VAE is 3: a latent"):
            find_schema(None, adapter, Measured(), takes_actions=True, vae=other_vae)
    assert find_schema(None, None, None, takes_actions=False, vae=other_vae).temporal_compression_ratio == 3
