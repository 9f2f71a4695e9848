"""The networks of a run: built, given LoRA layers, sharded and filled with weights, in that order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionSchema
from lightning_action.checkpoints.adapter import load_adapter, read_adapter
from lightning_action.checkpoints.lora import LoRASettings, init_lora, inject_lora, split_parameters
from lightning_action.checkpoints.pretrained import load_generator
from lightning_action.checkpoints.run_format import RunEntries
from lightning_action.distributed.sharded_checkpoints import read_entries
from lightning_action.distributed.sharding import Sharding, shard, shard_generator
from lightning_action.frozen.interfaces import VideoCodec
from lightning_action.generator.model import CausalWanModel
from lightning_action.seeding import generator_for, mix_seed
from lightning_action.weights.generator_file import GeneratorCheckpoint

RELEASE = "release"
_GENERATOR, _PROJECTION, _ACTION_MODULE, _LORA = range(4)


@dataclass(frozen=True)
class Factories:
    """Functions that build the networks.

    Args:
        generator: Function that builds the network.
        action_projection: Function from (action_dim, dim) to the action projection; None trains a backbone without
            actions.
        action_module: Function that builds the network that infers actions; None for none.
        lora: Settings of LoRA layers on the generator; None for none.
        train_backbone: Train the backbone; False freezes the generator's own weights.
        seed: Random seed of initial weights; each network has its own stream, so that none depends on how another was
            built.
    """

    generator: Callable[[], CausalWanModel]
    action_projection: Callable[[int, int], ActionModulationProjection] | None
    action_module: Callable[[], nn.Module] | None
    lora: LoRASettings | None
    train_backbone: bool
    seed: int

    def build_generator(self, mesh: DeviceMesh | None, sharding: Sharding, weights_follow: bool) -> CausalWanModel:
        """Build the generator with its LoRA layers, sharded over `mesh` if there is one.

        Args:
            mesh: Mesh of the data-parallel ranks; None for no sharding.
            sharding: Settings of the sharding.
            weights_follow: Make no initial weights, because others will be loaded; no rank holds more than its shard.
        """
        on_meta: AbstractContextManager[object] = torch.device("meta") if weights_follow else nullcontext()
        with _seeded(self.seed, _GENERATOR), on_meta:
            generator = self.generator()
        if self.lora is not None:
            with _seeded(self.seed, _LORA):
                inject_lora(generator, self.lora)
        if not self.train_backbone:
            for parameter in split_parameters(generator)[1].values():
                parameter.requires_grad_(False)
        if mesh is not None:
            shard_generator(generator, mesh, sharding)
        if weights_follow:
            generator.to_empty(device="cpu" if mesh is None else mesh.device_type)
        if self.lora is not None:
            init_lora(generator, generator_for(self.seed, _LORA))
        return generator

    def build_action_projection(
        self, generator: CausalWanModel, action_dim: int, mesh: DeviceMesh | None, sharding: Sharding
    ) -> ActionModulationProjection | None:
        """Build the action projection for a generator, from action vectors of width `action_dim`.

        Raises:
            ValueError: The projection is for another number of layers than the generator has.
        """
        if self.action_projection is None:
            return None
        with _seeded(self.seed, _PROJECTION):
            projection = self.action_projection(action_dim, generator.dim)
        if projection.num_layers not in (None, generator.num_layers):
            raise ValueError(
                f"the action_projection has num_layers {projection.num_layers}, the generator has num_layers "
                f"{generator.num_layers}: give both the same, or the projection none, to share one modulation"
            )
        if mesh is not None:
            shard(projection, (), mesh, sharding)
        return projection

    def build_action_module(self, mesh: DeviceMesh | None, sharding: Sharding) -> nn.Module | None:
        """Build the network that infers actions."""
        if self.action_module is None:
            return None
        with _seeded(self.seed, _ACTION_MODULE):
            module = self.action_module()
        if mesh is not None:
            shard(module, (), mesh, sharding)
        return module


@dataclass(frozen=True)
class InitialWeights:
    """Sources of the weights of a new run.

    Args:
        generator: File or folder, or `release`; None starts from nothing.
        lora: LoRA file that is merged into the generator.
        adapter: Action adapter that goes on top.
        any_base: Take the adapter also where it was trained on another generator.
    """

    generator: str | None
    lora: str | None
    adapter: str | None
    any_base: bool

    def __post_init__(self) -> None:
        if self.generator is None and (self.lora or self.adapter):
            raise ValueError(
                "pretrained_lora and adapter belong to a pretrained generator: name its weights with `pretrained`"
            )

    @property
    def path(self) -> str | None:
        """Path of the generator, as `load_generator` takes it."""
        return None if self.generator == RELEASE else self.generator

    def load(
        self,
        generator: CausalWanModel,
        projection: ActionModulationProjection | None,
        schema: ActionSchema,
    ) -> GeneratorCheckpoint:
        """Load the weights.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged or does not fit, or there is no projection to load an adapter into.
        """
        if self.adapter is None:
            return load_generator(generator, self.path, lora=self.lora)
        if projection is None:
            raise ValueError(f"the adapter {self.adapter} needs an action_projection to be loaded into")
        report = load_generator(generator, self.path, lora=self.lora)
        load_adapter(self.adapter, generator, projection, schema, self.any_base)
        return report


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Start the global generator from the numbers inside the block, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(*numbers))
        yield


def describe(part: object) -> str:
    """Name the class of a part, with a digest of what its weights do not say: its settings, and those of modules in it.

    These are their public attributes that are plain values, and the buffers that checkpoints leave out.
    """
    modules = dict(part.named_modules()) if isinstance(part, nn.Module) else {"": part}
    said = {
        name: {key: value for key, value in vars(m).items() if _is_setting(key, value)} for name, m in modules.items()
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    if isinstance(part, nn.Module):
        saved = part.state_dict().keys()
        for name, buffer in part.named_buffers():
            if name not in saved and not buffer.is_meta:
                digest.update(f"{name} {buffer.tolist()}".encode())
    return f"{type(part).__name__.removeprefix('FSDP')} {digest.hexdigest()[:16]}"


def _is_setting(name: str, value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_setting(name, item) for item in value)
    plain = isinstance(value, bool | int | float | str | torch.dtype | type(None))
    return plain and not name.startswith("_") and name != "training"


@runtime_checkable
class HasActionSchema(Protocol):
    """A DataModule that knows, once it is set up, what the actions of its batches are."""

    action_schema: ActionSchema | None


@runtime_checkable
class HasActionStatistics(Protocol):
    """A DataModule that has measured its actions, once it is set up: figures of each column, by name."""

    @property
    def action_statistics(self) -> list[dict[str, Any]]:
        """Figures of each column, as `ColumnStatistics` has them."""
        ...


def find_schema(
    ckpt_path: str | Path | None, adapter: str | Path | None, datamodule: object, takes_actions: bool, vae: VideoCodec
) -> ActionSchema:
    """Find what an action is, where a configuration leaves it open: in the checkpoint, in the adapter, or in the data.

    Args:
        ckpt_path: Checkpoint that a run goes on from; None for none.
        adapter: Action adapter that a run starts from; None for none.
        datamodule: DataModule, whose `action_schema` it is if there is neither.
        takes_actions: True if the model takes actions at all; else any schema will do.
        vae: VAE of the model.

    Raises:
        ValueError: The model takes actions, and nothing says what they are; or as `require_same_ratio`.
    """
    if ckpt_path is not None:
        schema = RunEntries.read(read_entries(ckpt_path)).schema
    elif adapter is not None:
        schema = read_adapter(adapter).schema
    elif isinstance(datamodule, HasActionSchema) and datamodule.action_schema is not None:
        schema = datamodule.action_schema
    elif takes_actions:
        raise ValueError(
            f"schema: auto takes what an action is from the data, and {type(datamodule).__name__} says nothing of it: "
            "give data with actions, or write the parts of an action into model.schema"
        )
    else:
        schema = ActionSchema(temporal_compression_ratio=vae.temporal_compression_ratio)
    return require_same_ratio(schema, vae)


def require_same_ratio(schema: ActionSchema, vae: VideoCodec) -> ActionSchema:
    """Return a schema to which a latent frame is the same as to the VAE.

    Raises:
        ValueError: Schema and VAE have different numbers of pixel frames for a latent frame.
    """
    if schema.temporal_compression_ratio != vae.temporal_compression_ratio:
        raise ValueError(
            f"schema.temporal_compression_ratio is {schema.temporal_compression_ratio}, that of the VAE is "
            f"{vae.temporal_compression_ratio}: a latent frame must mean the same to both"
        )
    return schema
