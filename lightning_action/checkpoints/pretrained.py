"""The folder that one fit leaves and the next one starts from: a generator, and a codec if it was fitted to data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.checkpoints.lora import base_state_dict, load_base
from lightning_action.frozen.interfaces import CodecVideos, EncodedData, FittedCodec
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.fingerprint import require_fingerprint
from lightning_action.weights.fit import load_strictly, require_same
from lightning_action.weights.generator_file import GeneratorCheckpoint, read_action_projection, read_generator
from lightning_action.weights.low_rank import add_changes, read_low_rank, scales
from lightning_action.weights.release import find_release_file
from lightning_action.weights.safetensors_files import read_safetensors
from lightning_action.weights.size import detect_size, require_traits
from lightning_action.weights.tensor_files import LazyTensors, find_weights, read_header
from lightning_action.weights.values import require_finite

GENERATOR_FILE = "generator.safetensors"
VAE_FILE = "vae.safetensors"
_EXPECTED = (
    "`pretrained` is a checkpoint of this family, or a folder that a fit with `export_weights` leaves, for the demo "
    "that of `fit --config configs/demo.yaml --config configs/demo_backbone.yaml`"
)
_RELEASED = (
    *("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors", "transformer"),
    *("transformer_2", "high_noise_model", "low_noise_model"),
)


def load_generator(
    generator: CausalWanModel,
    path: str | Path | None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
) -> GeneratorCheckpoint:
    """Load the generator of any checkpoint of the family, or of a folder that a fit with `export_weights` left.

    The tensors go in one by one, after all of them were found to fit; the generator keeps its dtype. It may be sharded,
    have LoRA layers, or be on the meta device, which it leaves. Averaged weights come before those of the last step.

    Args:
        generator: Generator that is given the weights.
        path: File, index of shards, or folder; None takes the transformer in the folder that the environment
            variable `LIGHTNING_ACTION_WEIGHTS` names.
        lora: LoRA file (peft's, diffusers', kohya's, LongLive's) to be merged into the weights.
        lora_alpha: Numerator of the scale of that LoRA; None takes what the file says, else its rank. The result says
            which.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is not whole, holds no generator, one that does not fit, or values that are not finite.
    """
    file = generator_file(path)
    checkpoint = read_generator(file, lora_alpha)
    changes = {} if lora is None else read_low_rank(lora, lora_alpha)
    tensors = add_changes(checkpoint.tensors, changes, str(lora))
    _check_size(generator, tensors, str(file))
    complaint = f"{file} does not fit {type(generator).__name__}"
    require_same(base_state_dict(generator), tensors.entries, complaint, "use the configuration it was trained with")
    require_traits(checkpoint.said, generator.traits, str(file))
    require_finite(tensors, str(file), "it is damaged, or was saved after training went wrong; take another one")
    require_fingerprint(checkpoint.tensors, read_header(file), str(file))
    for name, part in generator.parts():
        load_base(part, tensors.below(name))
    return replace(
        checkpoint,
        tensors=tensors,
        num_merged=checkpoint.num_merged + len(changes),
        scales=(*checkpoint.scales, *scales(changes)),
    )


def generator_file(path: str | Path | None) -> Path:
    """Find the file that holds the generator. Arguments and errors as in `load_generator`."""
    if path is None:
        found = find_release_file(_RELEASED, "the generator")
        return find_weights(found.parent if found.is_dir() else found)
    exported = Path(path) / GENERATOR_FILE
    try:
        return exported if exported.is_file() else find_weights(Path(path))
    except FileNotFoundError as error:
        where = "" if Path(path).is_absolute() else f" (looked for from {str(Path.cwd())!r})"
        raise FileNotFoundError(f"{error}{where}. {_EXPECTED}") from error


def load_action_projection(projection: ActionModulationProjection, path: str | Path) -> None:
    """Load the action projection that a checkpoint of this family, or one of ours, holds.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is not whole, holds no projection or several, or one that does not fit.
    """
    load_strictly(projection, read_action_projection(path), str(path))


def prepare_codec(codec: FittedCodec, folder: str | None, datamodule: object) -> None:
    """Load `vae.safetensors` from the folder; without one take what encoded the data, or fit to the training videos.

    Raises:
        FileNotFoundError: The folder has no such file.
        ValueError: The file does not fit, or the DataModule offers no videos.
    """
    if folder is not None:
        path = Path(folder) / VAE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {VAE_FILE} in {folder!r}. {_EXPECTED}")
        tensors = read_safetensors(path)
        require_fingerprint(tensors, read_header(path), str(path))
        codec.load_fitted_tensors(tensors, str(path))
    elif isinstance(datamodule, EncodedData):
        codec.load_fitted_tensors(datamodule.codec_tensors(), "the codec that encoded the data")
    elif isinstance(datamodule, CodecVideos):
        codec.fit(datamodule.codec_videos())
    else:
        raise ValueError(
            f"{type(codec).__name__} is fitted to training videos: give a DataModule with codec_videos() -> [N, T, "
            "3, H, W] in [-1, 1], or `pretrained` weights that bring the fitted codec"
        )


def _check_size(generator: CausalWanModel, tensors: LazyTensors, source: str) -> None:
    """Say in the words of the configuration what differs, where that is the size."""
    theirs, ours = detect_size(tensors.entries), detect_size(base_state_dict(generator))
    differing = [
        f"{name} {theirs.get(name)} (the configuration says {ours.get(name)})"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise ValueError(
            f"{source} does not fit {type(generator).__name__}: it holds a model of {', '.join(differing)}"
        )
