"""Action-conditioned world models out of causal Wan-type video generators, with PyTorch Lightning.

The names below load on first use, so `import lightning_action` imports neither torch nor lightning.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_action.action.modules import ConvActionModule as ConvActionModule
    from lightning_action.action.modules import DiscreteActionModule as DiscreteActionModule
    from lightning_action.action.modules import VisualTextActionModule as VisualTextActionModule
    from lightning_action.action.projection import ActionModulationProjection as ActionModulationProjection
    from lightning_action.action.projection import SummedModulation as SummedModulation
    from lightning_action.action.schema import ActionSchema as ActionSchema
    from lightning_action.frozen.codec import LinearVideoCodec as LinearVideoCodec
    from lightning_action.frozen.text import HashingTextEncoder as HashingTextEncoder
    from lightning_action.frozen.tiny_vae import TinyWanVAE as TinyWanVAE
    from lightning_action.frozen.umt5 import UMT5TextEncoder as UMT5TextEncoder
    from lightning_action.frozen.wan_vae import WanVideoVAE as WanVideoVAE
    from lightning_action.generator.blocks import BlockCausality as BlockCausality
    from lightning_action.generator.kv_cache import KVCache as KVCache
    from lightning_action.generator.model import CausalWanModel as CausalWanModel
    from lightning_action.module import ActionVideoModule as ActionVideoModule
    from lightning_action.pipeline.inference import ActionCausalInferencePipeline as ActionCausalInferencePipeline
    from lightning_action.rollout import CausalRollout as CausalRollout
    from lightning_action.run import load_module as load_module

__version__ = "0.1.0"

# Exported name -> where it is defined. A new one is added here and above; it must not be the name of a submodule.
_EXPORTS = {
    "ActionCausalInferencePipeline": "lightning_action.pipeline.inference",
    "ActionModulationProjection": "lightning_action.action.projection",
    "ActionSchema": "lightning_action.action.schema",
    "ActionVideoModule": "lightning_action.module",
    "BlockCausality": "lightning_action.generator.blocks",
    "CausalRollout": "lightning_action.rollout",
    "CausalWanModel": "lightning_action.generator.model",
    "ConvActionModule": "lightning_action.action.modules",
    "DiscreteActionModule": "lightning_action.action.modules",
    "HashingTextEncoder": "lightning_action.frozen.text",
    "KVCache": "lightning_action.generator.kv_cache",
    "LinearVideoCodec": "lightning_action.frozen.codec",
    "SummedModulation": "lightning_action.action.projection",
    "TinyWanVAE": "lightning_action.frozen.tiny_vae",
    "UMT5TextEncoder": "lightning_action.frozen.umt5",
    "VisualTextActionModule": "lightning_action.action.modules",
    "WanVideoVAE": "lightning_action.frozen.wan_vae",
    "load_module": "lightning_action.run",
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
