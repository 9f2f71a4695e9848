"""The weights of a run, its actions included, out of its folder or its checkpoint."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionSchema
from lightning_action.checkpoints.pretrained import load_action_projection, load_generator
from lightning_action.checkpoints.run_format import RunEntries
from lightning_action.frozen.interfaces import FittedCodec, VideoCodec
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.generator_file import GeneratorCheckpoint
from lightning_action.weights.tensor_files import load_pickle

_LAST = Path("checkpoints") / "last.ckpt"


@dataclass(frozen=True)
class RunWeights:
    """Parts that another run has trained: its generator, with LoRA merged, its action projection, and its fitted VAE.

    Averages are taken where the checkpoint has them.

    Args:
        generator: Folder of a run, as `fit` leaves it, or a checkpoint in one file.
    """

    generator: str
    adapter: ClassVar[None] = None
    lora: ClassVar[None] = None

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        last = Path(self.generator) / _LAST
        return last if last.is_file() else Path(self.generator)

    def entries(self) -> RunEntries:
        """Read what the checkpoint says besides weights.

        Raises:
            FileNotFoundError: The path names no run.
            ValueError: The file is no checkpoint of a run in one file.
        """
        if self.path.is_dir():
            raise ValueError(
                f"{self.generator} holds no {_LAST}, or one of shards: name a run that has a checkpoint in one file "
                "(--trainer.strategy.init_args.save_distributed_checkpoint false writes one)"
            )
        if not self.path.is_file():
            raise FileNotFoundError(f"no run at {self.generator!r}: name the folder that `fit` left, or its checkpoint")
        return RunEntries.read(load_pickle(self.path))

    @property
    def config(self) -> Path | None:
        """The configuration that the run's last fit saved, in its folder or in that of its logger; None for none."""
        folder = self.path.parents[1] if self.path.parts[-2:-1] == _LAST.parts[:1] else Path(self.generator)
        saved = [*folder.glob("config_fit.yaml"), *folder.glob("*/version_*/config_fit.yaml")]
        return max(saved, key=lambda path: path.stat().st_mtime, default=None)

    def saved_settings(self) -> dict[str, Any] | None:
        """Return the settings of the model in the run's configuration; None where the run has none."""
        if self.config is None:
            return None
        model: dict[str, Any] = yaml.safe_load(self.config.read_text()).get("model") or {}
        return dict(model.get("init_args") or {}) if "class_path" in model else model

    def load(
        self, generator: CausalWanModel, projection: ActionModulationProjection | None, schema: ActionSchema
    ) -> GeneratorCheckpoint:
        """Load the weights.

        Args:
            generator: Generator that is given them.
            projection: Action projection that is given them; None leaves the run's out.
            schema: Meaning of an action here.

        Raises:
            ValueError: The weights do not fit, or the run's actions mean something else.
        """
        saved = self.entries()
        if projection is not None and saved.schema != schema:
            raise ValueError(
                f"{self.path} was trained with the actions {saved.schema}, the configuration says {schema}"
            )
        report = load_generator(generator, self.path)
        if projection is not None:
            load_action_projection(projection, self.path)
        return report

    def give_codec(self, vae: VideoCodec) -> None:
        """Give a VAE that is fitted to data, and is not yet, the tensors that the run has fitted.

        Raises:
            ValueError: The run holds no fitted tensors, or others than a VAE has that is fitted already.
        """
        if not isinstance(vae, FittedCodec):
            return
        tensors = self.entries().vae
        if tensors is None:
            raise ValueError(f"{self.path} holds no fitted VAE: use the VAE that it was trained with")
        runs = deepcopy(vae) if vae.fitted else vae
        runs.load_fitted_tensors(tensors, str(self.path))
        if runs.checksum() != vae.checksum():
            raise ValueError(
                f"{self.path} was trained with a {type(vae).__name__} of other tensors than the configuration's: give "
                "its arguments (`vae.init_args`) as that run's configuration has them"
            )
