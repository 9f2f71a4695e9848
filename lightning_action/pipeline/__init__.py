"""Generation without a Trainer."""

from lightning_action.pipeline.inference import ActionCausalInferencePipeline

__all__ = ["ActionCausalInferencePipeline"]
