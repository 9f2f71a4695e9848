"""Action-conditioned world models out of causal Wan-type video generators, with PyTorch Lightning.

The names below load on first use, so `import lightning_action` imports neither torch nor lightning.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_action.action.conditioning import inferred_vectors as inferred_vectors
    from lightning_action.action.modules import ConvActionModule as ConvActionModule
    from lightning_action.action.modules import DiscreteActionModule as DiscreteActionModule
    from lightning_action.action.modules import VisualTextActionModule as VisualTextActionModule
    from lightning_action.action.projection import ActionModulationProjection as ActionModulationProjection
    from lightning_action.action.schema import ActionPart as ActionPart
    from lightning_action.action.schema import ActionSchema as ActionSchema
    from lightning_action.checkpoints.adapter import load_adapter as load_adapter
    from lightning_action.checkpoints.lora import LoRASettings as LoRASettings
    from lightning_action.checkpoints.pretrained import load_action_projection as load_action_projection
    from lightning_action.data.action_file import ActionFileDataModule as ActionFileDataModule
    from lightning_action.data.environment import EnvironmentDataModule as EnvironmentDataModule
    from lightning_action.data.latents import LatentDataModule as LatentDataModule
    from lightning_action.data.lerobot import LeRobotDataModule as LeRobotDataModule
    from lightning_action.data.panning_world import PanningCameraWorld as PanningCameraWorld
    from lightning_action.data.resumable import ResumableDataLoader as ResumableDataLoader
    from lightning_action.data.resumable import ResumableSampler as ResumableSampler
    from lightning_action.data.sprite_data import SpriteDataModule as SpriteDataModule
    from lightning_action.data.sprite_world import MovingSpriteWorld as MovingSpriteWorld
    from lightning_action.data.video_folder import VideoFolderDataModule as VideoFolderDataModule
    from lightning_action.distillation.consistency import ActionConsistencyDistillation as ActionConsistencyDistillation
    from lightning_action.distillation.distilled_module import ActionCollapse as ActionCollapse
    from lightning_action.distillation.dmd import ActionDistillation as ActionDistillation
    from lightning_action.distillation.trajectory import ActionTrajectoryDistillation as ActionTrajectoryDistillation
    from lightning_action.distributed.fsdp2 import FSDP2Strategy as FSDP2Strategy
    from lightning_action.distributed.sharding import Sharding as Sharding
    from lightning_action.evaluation.metrics.action_following import ActionFollowing as ActionFollowing
    from lightning_action.evaluation.metrics.color_locator import ColorLocator as ColorLocator
    from lightning_action.evaluation.metrics.controllability import Controllability as Controllability
    from lightning_action.evaluation.metrics.counterfactuals import CounterfactualDivergence as CounterfactualDivergence
    from lightning_action.evaluation.metrics.counterfactuals import CrossSwap as CrossSwap
    from lightning_action.evaluation.metrics.divergence_onset import DivergenceOnset as DivergenceOnset
    from lightning_action.evaluation.metrics.flow import FlowError as FlowError
    from lightning_action.evaluation.metrics.guidance_response import GuidanceResponse as GuidanceResponse
    from lightning_action.evaluation.metrics.held_actions import HeldActions as HeldActions
    from lightning_action.evaluation.metrics.inverse_dynamics_accuracy import (
        InverseDynamicsAccuracy as InverseDynamicsAccuracy,
    )
    from lightning_action.evaluation.metrics.loss_gap import LossGap as LossGap
    from lightning_action.evaluation.metrics.motion import MotionFloor as MotionFloor
    from lightning_action.evaluation.metrics.read_actions import ActionsReadBack as ActionsReadBack
    from lightning_action.evaluation.metrics.round_trip import RoundTrip as RoundTrip
    from lightning_action.evaluation.metrics.smoothness import BlockSeams as BlockSeams
    from lightning_action.evaluation.metrics.video_quality import DeltaPsnr as DeltaPsnr
    from lightning_action.evaluation.metrics.video_quality import VideoQuality as VideoQuality
    from lightning_action.frozen.conv_codec import ConvVideoCodec as ConvVideoCodec
    from lightning_action.frozen.hashing_text import HashingTextEncoder as HashingTextEncoder
    from lightning_action.frozen.interfaces import TextEncoder as TextEncoder
    from lightning_action.frozen.interfaces import VideoCodec as VideoCodec
    from lightning_action.frozen.linear_codec import LinearVideoCodec as LinearVideoCodec
    from lightning_action.frozen.sprite_codec import SpriteVideoCodec as SpriteVideoCodec
    from lightning_action.frozen.tiny_vae import TinyWanVAE as TinyWanVAE
    from lightning_action.frozen.umt5 import UMT5TextEncoder as UMT5TextEncoder
    from lightning_action.frozen.wan_vae import WanVideoVAE as WanVideoVAE
    from lightning_action.generation.prompt_switches import PromptSwitch as PromptSwitch
    from lightning_action.generation.rollout import CausalRollout as CausalRollout
    from lightning_action.generation.sampling import Sampling as Sampling
    from lightning_action.generation.world_session import WorldSession as WorldSession
    from lightning_action.generator.acceleration import Acceleration as Acceleration
    from lightning_action.generator.causality import BlockCausality as BlockCausality
    from lightning_action.generator.kv_cache import KVCache as KVCache
    from lightning_action.generator.model import CausalWanModel as CausalWanModel
    from lightning_action.module.action_video_module import ActionVideoModule as ActionVideoModule
    from lightning_action.module.generative_module import GenerativeModule as GenerativeModule
    from lightning_action.optimization import Optimization as Optimization
    from lightning_action.pipeline.inference import ActionCausalInferencePipeline as ActionCausalInferencePipeline
    from lightning_action.play.planning import Planner as Planner
    from lightning_action.play.planning import imagination as imagination
    from lightning_action.play.world_model_env import WorldModelEnv as WorldModelEnv
    from lightning_action.play.world_model_env import WorldModelVectorEnv as WorldModelVectorEnv
    from lightning_action.recordings.pusht import PushTWanderer as PushTWanderer
    from lightning_action.recordings.pusht import make_pusht as make_pusht
    from lightning_action.run import build_datamodule as build_datamodule
    from lightning_action.run import load_run as load_run

__version__ = "0.1.0"

# Exported name -> where it is defined. A new one is added here and above; it must not be the name of a submodule.
_EXPORTS = {
    "Acceleration": "lightning_action.generator.acceleration",
    "ActionCausalInferencePipeline": "lightning_action.pipeline.inference",
    "ActionCollapse": "lightning_action.distillation.distilled_module",
    "ActionConsistencyDistillation": "lightning_action.distillation.consistency",
    "ActionDistillation": "lightning_action.distillation.dmd",
    "ActionFileDataModule": "lightning_action.data.action_file",
    "ActionFollowing": "lightning_action.evaluation.metrics.action_following",
    "ActionModulationProjection": "lightning_action.action.projection",
    "ActionPart": "lightning_action.action.schema",
    "ActionSchema": "lightning_action.action.schema",
    "ActionTrajectoryDistillation": "lightning_action.distillation.trajectory",
    "ActionVideoModule": "lightning_action.module.action_video_module",
    "ActionsReadBack": "lightning_action.evaluation.metrics.read_actions",
    "BlockCausality": "lightning_action.generator.causality",
    "BlockSeams": "lightning_action.evaluation.metrics.smoothness",
    "CausalRollout": "lightning_action.generation.rollout",
    "CausalWanModel": "lightning_action.generator.model",
    "ColorLocator": "lightning_action.evaluation.metrics.color_locator",
    "Controllability": "lightning_action.evaluation.metrics.controllability",
    "ConvActionModule": "lightning_action.action.modules",
    "ConvVideoCodec": "lightning_action.frozen.conv_codec",
    "CounterfactualDivergence": "lightning_action.evaluation.metrics.counterfactuals",
    "CrossSwap": "lightning_action.evaluation.metrics.counterfactuals",
    "DeltaPsnr": "lightning_action.evaluation.metrics.video_quality",
    "DiscreteActionModule": "lightning_action.action.modules",
    "DivergenceOnset": "lightning_action.evaluation.metrics.divergence_onset",
    "EnvironmentDataModule": "lightning_action.data.environment",
    "FSDP2Strategy": "lightning_action.distributed.fsdp2",
    "FlowError": "lightning_action.evaluation.metrics.flow",
    "GenerativeModule": "lightning_action.module.generative_module",
    "GuidanceResponse": "lightning_action.evaluation.metrics.guidance_response",
    "HashingTextEncoder": "lightning_action.frozen.hashing_text",
    "HeldActions": "lightning_action.evaluation.metrics.held_actions",
    "InverseDynamicsAccuracy": "lightning_action.evaluation.metrics.inverse_dynamics_accuracy",
    "KVCache": "lightning_action.generator.kv_cache",
    "LatentDataModule": "lightning_action.data.latents",
    "LeRobotDataModule": "lightning_action.data.lerobot",
    "LinearVideoCodec": "lightning_action.frozen.linear_codec",
    "LoRASettings": "lightning_action.checkpoints.lora",
    "LossGap": "lightning_action.evaluation.metrics.loss_gap",
    "MotionFloor": "lightning_action.evaluation.metrics.motion",
    "MovingSpriteWorld": "lightning_action.data.sprite_world",
    "Optimization": "lightning_action.optimization",
    "PanningCameraWorld": "lightning_action.data.panning_world",
    "Planner": "lightning_action.play.planning",
    "PromptSwitch": "lightning_action.generation.prompt_switches",
    "PushTWanderer": "lightning_action.recordings.pusht",
    "ResumableDataLoader": "lightning_action.data.resumable",
    "ResumableSampler": "lightning_action.data.resumable",
    "RoundTrip": "lightning_action.evaluation.metrics.round_trip",
    "Sampling": "lightning_action.generation.sampling",
    "Sharding": "lightning_action.distributed.sharding",
    "SpriteDataModule": "lightning_action.data.sprite_data",
    "SpriteVideoCodec": "lightning_action.frozen.sprite_codec",
    "TextEncoder": "lightning_action.frozen.interfaces",
    "TinyWanVAE": "lightning_action.frozen.tiny_vae",
    "UMT5TextEncoder": "lightning_action.frozen.umt5",
    "VideoCodec": "lightning_action.frozen.interfaces",
    "VideoFolderDataModule": "lightning_action.data.video_folder",
    "VideoQuality": "lightning_action.evaluation.metrics.video_quality",
    "VisualTextActionModule": "lightning_action.action.modules",
    "WanVideoVAE": "lightning_action.frozen.wan_vae",
    "WorldModelEnv": "lightning_action.play.world_model_env",
    "WorldModelVectorEnv": "lightning_action.play.world_model_env",
    "WorldSession": "lightning_action.generation.world_session",
    "build_datamodule": "lightning_action.run",
    "imagination": "lightning_action.play.planning",
    "inferred_vectors": "lightning_action.action.conditioning",
    "load_action_projection": "lightning_action.checkpoints.pretrained",
    "load_adapter": "lightning_action.checkpoints.adapter",
    "load_run": "lightning_action.run",
    "make_pusht": "lightning_action.recordings.pusht",
}
__all__ = ["__version__", *_EXPORTS]

# setup.cfg maps the top-level callbacks/ and configs/ into this package when it is installed. In a bare checkout
# nothing does, so `lightning_action.callbacks` is looked up in the root of the checkout as well.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "setup.cfg").is_file() and (_ROOT / "callbacks" / "__init__.py").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
