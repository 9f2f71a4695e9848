"""Callbacks for any LightningModule: they import nothing but torch, lightning and the standard library."""

from .action_modulation_monitor import ActionModulationMonitor, ActionModulationWarning
from .action_scan import ActionScan
from .action_sensitivity import ActionSensitivity, IgnoredActionsWarning
from .drift_monitor import DriftMonitor, DriftWarning
from .ema import EMA
from .freeze_backbone_first import FreezeBackboneFirst
from .gradient_statistics import GradientStatistics, NonFiniteGradientWarning
from .noise_level_loss import NoiseLevelLoss
from .prediction_writer import PredictionWriter
from .rollout_logger import RolloutLogger
from .tensorboard_layout import TensorBoardLayout
from .throughput_monitor import ThroughputMonitor

__all__ = [
    "ActionModulationMonitor",
    "ActionModulationWarning",
    "ActionScan",
    "ActionSensitivity",
    "DriftMonitor",
    "DriftWarning",
    "EMA",
    "FreezeBackboneFirst",
    "GradientStatistics",
    "IgnoredActionsWarning",
    "NoiseLevelLoss",
    "NonFiniteGradientWarning",
    "PredictionWriter",
    "RolloutLogger",
    "TensorBoardLayout",
    "ThroughputMonitor",
]
