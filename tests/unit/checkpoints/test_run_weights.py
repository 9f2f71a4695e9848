"""The weights of another run: its generator, its actions, its codec."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from lightning_action.checkpoints.run_weights import RunWeights
from lightning_action.frozen.linear_codec import LinearVideoCodec
from tests.support.small_distillation import build_generator, build_projection, data, write_teacher


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("run"))


def test_folder_and_file_give_generator_actions_and_codec(run: Path) -> None:
    file = run / "checkpoints" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    schema, codec = data().action_schema, LinearVideoCodec(7, patch_size=4)
    for named in (run, file):
        weights = RunWeights(str(named))
        generator, projection = build_generator(), build_projection(schema.action_dim, 24)
        assert len(weights.load(generator, projection, schema).tensors) == len(generator.state_dict())
        for prefix, part in (("generator.", generator), ("action_projection.", projection)):
            assert all(torch.equal(saved["state_dict"][prefix + name], t) for name, t in part.state_dict().items())
    assert not codec.fitted
    weights.give_codec(codec)
    assert codec.fitted and all(torch.equal(saved["vae"][name], t) for name, t in codec.fitted_tensors().items())


def test_a_codec_that_is_fitted_to_something_else_is_refused_and_stays(run: Path) -> None:
    codec, weights = LinearVideoCodec(7, patch_size=4), RunWeights(str(run))
    codec.fit(torch.rand(3, 5, 3, 16, 16) * 2 - 1)
    before = {name: tensor.clone() for name, tensor in codec.fitted_tensors().items()}
    with pytest.raises(ValueError, match="trained with a LinearVideoCodec of other tensors than the configuration's"):
        weights.give_codec(codec)
    assert all(torch.equal(before[name], tensor) for name, tensor in codec.fitted_tensors().items())
    same = LinearVideoCodec(7, patch_size=4)
    weights.give_codec(same)
    weights.give_codec(same)
    assert same.fitted and same.checksum() != codec.checksum()


def test_the_average_is_taken_where_there_is_one(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["ema_state_dict"] = {name: tensor + 1 for name, tensor in content["state_dict"].items()}
    torch.save(content, tmp_path / "averaged.ckpt")
    schema = data().action_schema
    generator, projection = build_generator(), build_projection(schema.action_dim, 24)
    RunWeights(str(tmp_path / "averaged.ckpt")).load(generator, projection, schema)
    name = "action_projection.bias"
    assert torch.equal(projection.state_dict()[name], content["state_dict"][f"action_projection.{name}"] + 1)
    assert torch.equal(generator.head.head.bias, content["state_dict"]["generator.head.head.bias"] + 1)


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="name the folder that `fit` left, or its checkpoint"):
        RunWeights(str(tmp_path / "nowhere")).entries()
    with pytest.raises(ValueError, match="or one of shards: name a run that has a checkpoint in one file"):
        RunWeights(str(tmp_path)).entries()
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["vae"]
    torch.save(content, tmp_path / "without.ckpt")
    with pytest.raises(ValueError, match="holds no fitted VAE"):
        RunWeights(str(tmp_path / "without.ckpt")).give_codec(LinearVideoCodec(7, patch_size=4))


def test_the_settings_are_those_of_the_last_fit_in_the_run_itself(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run / "checkpoints", folder / "checkpoints")
    file = folder / "checkpoints" / "last.ckpt"
    assert RunWeights(str(folder)).config is None is RunWeights(str(file)).saved_settings()
    inner = folder / "lightning_logs" / "version_3" / "config_fit.yaml"
    others = folder / "other_run" / "lightning_logs" / "version_0" / "config_fit.yaml"
    for path, seconds, shift in ((folder / "config_fit.yaml", 1, 3.0), (inner, 2, 4.0), (others, 3, 5.0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"model: {{class_path: a.B, init_args: {{timestep_shift: {shift}}}}}")
        os.utime(path, (seconds, seconds))
    for named in (folder, file):
        assert RunWeights(str(named)).config == inner
        assert RunWeights(str(named)).saved_settings() == {"timestep_shift": 4.0}
    os.utime(folder / "config_fit.yaml", (9, 9))
    (folder / "config_fit.yaml").write_text("model: {timestep_shift: 6.0}")
    assert RunWeights(str(folder)).saved_settings() == {"timestep_shift": 6.0}
