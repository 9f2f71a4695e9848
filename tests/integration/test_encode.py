"""From data to a model that was tested, with the frozen parts run once: through the command line alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_action import HashingTextEncoder, LatentDataModule
from lightning_action.cli import main
from tests.support.small_commands import ACTION, ROOT, SMALL_DATA, SMALL_MODEL, checkpoint, last_checkpoint, small

# Five windows of 3 latent frames in each of 16 clips of 5; 20 batches of 4 an epoch.
LATENTS = [f"--config={ROOT / 'configs' / 'latents.yaml'}", "--data.num_latents=3", "--data.batch_size=4"]
QUIET = ["--trainer.callbacks=[]", "--trainer.limit_val_batches=0", "--trainer.logger=false"]


# A codec that is fitted to the data, as the demo's is not.
CODEC = ["--model.vae=lightning_action.LinearVideoCodec", "--model.vae.latent_dim=24", "--model.vae.patch_size=8"]


def from_store(verb: str, folder: Path, store: Path, *more: str) -> list[str]:
    """The demo's command, with the data of a store."""
    config, root = f"--config={ROOT / 'configs' / 'demo.yaml'}", f"--trainer.default_root_dir={folder}"
    of_store = [*LATENTS, f"--data.store={store}", "--model.pretrained=null"]
    return [verb, config, *of_store, root, *SMALL_MODEL, *CODEC, *ACTION, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(last_checkpoint(folder), weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    main(small("encode", folder, "--model.pretrained=null", *CODEC, f"--output={folder / 'store'}", "--dtype=float32"))
    return folder / "store"


def test_the_empty_prompt_is_in_every_batch(store: Path) -> None:
    source = LatentDataModule(str(store), num_latents=2)
    source.setup("fit")
    batch = next(iter(source.train_dataloader()))
    text_encoder = HashingTextEncoder(text_dim=batch["text"].shape[2])
    assert len(batch["empty_text"]) == len(batch["text"]) and batch["text"].any()
    assert torch.equal(batch["empty_text"], text_encoder.encode([""])[:, :1].expand_as(batch["empty_text"]))


def test_encode_fit_resume_predict_test(store: Path, tmp_path: Path) -> None:
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    main(from_store("fit", whole, store, "--trainer.max_steps=7", *QUIET))
    main(from_store("fit", begun, store, "--trainer.max_steps=3", *QUIET))
    main(from_store("fit", begun, store, "--trainer.max_steps=7", *QUIET, checkpoint(begun)))
    expected, found = weights(whole), weights(begun)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    writer = "--trainer.callbacks=lightning_action.callbacks.PredictionWriter"
    main(from_store("predict", begun, store, checkpoint(begun), writer))
    predicted = torch.load(begun / "predictions" / "000000.pt", weights_only=True)
    assert predicted["video"].shape == (9, 3, 16, 16)
    assert len(list((begun / "predictions").glob("*.mp4"))) == 3
    main(from_store("test", begun, store, checkpoint(begun), "--trainer.logger=false"))
    report = json.loads((begun / "report.json").read_text())
    assert report["num_frames"] == 9 and report["psnr_db"] > 0


def test_latents_train_as_the_videos_that_they_were_made_of(store: Path, tmp_path: Path) -> None:
    """The same samples in the same order, and the same losses up to the rounding of another batch size."""
    recorded = ["--trainer.callbacks=tests.support.recorded_losses.RecordedLosses", *QUIET[1:], "--trainer.max_steps=6"]
    whole_clips = ["--data.num_latents=5", "--data.window_starts=clip_start"]
    main(small("fit", tmp_path / "videos", "--model.pretrained=null", *CODEC, *recorded))
    main(from_store("fit", tmp_path / "latents", store, *whole_clips, *recorded))
    videos, latents = (json.loads((tmp_path / kind / "losses.json").read_text()) for kind in ("videos", "latents"))
    assert len(videos) == 6 and max(videos) - min(videos) > 0.01
    assert latents == pytest.approx(videos, rel=1e-5)


def test_a_fit_from_pixels_of_another_codec_does_not_take_the_store(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = [f"--config={ROOT / 'configs' / 'demo.yaml'}", f"--config={ROOT / 'configs' / 'demo_backbone.yaml'}"]
    main(
        ["fit", *backbone, f"--trainer.default_root_dir={tmp_path / 'backbone'}", "--trainer.max_steps=1", *SMALL_MODEL]
        + [*CODEC, *SMALL_DATA, "--data.seed=3", *QUIET]
    )
    with pytest.raises(SystemExit) as stopped:
        main(from_store("fit", tmp_path / "run", store, f"--model.pretrained={tmp_path / 'backbone'}", *QUIET))
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "was encoded with the VAE LinearVideoCodec" in told
    assert not list((tmp_path / "run").rglob("*.*"))


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    watch = tmp_path / "watch.txt"
    store = f"--output={tmp_path / 'store'}"
    arguments = small("encode", tmp_path, "--model.pretrained=null", store, "--shard_mb=0.0125")
    data = ["--data=tests.support.killed_while_encoding.WatchedSprites", f"--data.watch={watch}"]
    world = "--data.world=lightning_action.MovingSpriteWorld"
    command = [*arguments, *data, "--data.init_args.dies_at=11", *SMALL_DATA, world]
    killed = subprocess.run([sys.executable, "main.py", *command], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "store" / "index.json").exists()
    main(command)
    read = Counter(watch.read_text().splitlines())
    assert len(read) == 16 + 4 + 6 + 3 and read.total() == len(read) + 1, "but the one in which it was killed"
    assert len(list((tmp_path / "store").glob("latents-*.safetensors"))) > 3
    assert not (tmp_path / "store" / "unmerged").exists()
