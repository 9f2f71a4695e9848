"""PredictionWriter on a small module of its own."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lightning_action.callbacks import EMA, PredictionWriter, prediction_writer
from lightning_action.callbacks.support.files import replacing
from lightning_action.callbacks.support.pictures import CAPTION_HEIGHT, GAP
from lightning_action.callbacks.support.prediction_records import FolderClaim
from tests.support.short_fits import quiet_trainer

NUM_SAMPLES, B, T, H, W = 5, 3, 7, 12, 20
ENLARGED = (240, 400)  # the shorter side has at least 240 pixels
FRAMES_IN_LATENTS, CHANNELS = 2, 5
SAMPLE_IDS = [100, 101, 102, 103, 104]
NAMES = [f"{sample_id:06d}" for sample_id in SAMPLE_IDS]
GENERATION = {"num_inference_steps": 4, "shift": 5.0, "sampler": "euler"}


def of_sample(sample_id: int, *shape: int) -> Tensor:
    """Random numbers in [0, 1] that belong to a sample."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sample_id))


class Predictor(LightningModule):
    """Returns everything that a PredictionWriter knows, and changes to that, if any; a None takes an entry away."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        ids = batch["sample_id"].tolist()
        prediction = {
            "video": torch.stack([of_sample(i, T, 3, H, W) for i in ids]),
            "sample_id": batch["sample_id"],
            "latents": torch.stack([of_sample(i, FRAMES_IN_LATENTS, CHANNELS, 3, 4) for i in ids]),
            "action": torch.stack([of_sample(i, T - 1, 2) for i in ids]),
            "truth": torch.stack([of_sample(-i, T, 3, H, W) for i in ids]),
            "prompt": [f"sample {i}, größer" for i in ids],
            "seed": 42,
            "generation": GENERATION,
        }
        return {name: value for name, value in (prediction | self.changes).items() if value is not None}


class FirstBatchOnly(Callback):
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.limit_predict_batches = 1


def predict(tmp_path: Path, *callbacks: Callback, module: LightningModule | None = None, num_loaders: int = 1) -> None:
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = [DataLoader([{"sample_id": i} for i in SAMPLE_IDS], batch_size=B) for _ in range(num_loaders)]
    trainer.predict(module or Predictor(), loaders[0] if num_loaders == 1 else loaders, return_predictions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a prediction wrote, to look at only."""
    root = tmp_path_factory.mktemp("predictions_of_all_samples")
    predict(root, PredictionWriter(fps=5))
    return root / "predictions"


def manifest_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def size_of_mp4(path: Path) -> tuple[int, int, int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return len(frames), *frames[0].shape[:2]


def test_every_sample_becomes_three_files_and_the_manifest_lists_them(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    assert files == {f"{name}.{kind}" for name in NAMES for kind in ("mp4", "pt", "json")} | {"manifest.jsonl"}
    assert manifest_of(folder) == [json.loads((folder / f"{name}.json").read_text()) for name in NAMES]
    assert [record["sample_id"] for record in manifest_of(folder)] == SAMPLE_IDS


def test_the_pt_file_holds_exact_tensors_of_one_sample(folder: Path) -> None:
    for sample_id, name in zip(SAMPLE_IDS, NAMES, strict=True):
        content = torch.load(folder / f"{name}.pt", weights_only=True)
        assert content.keys() == {"sample_id", "video", "latents", "action"}
        assert content["sample_id"] == sample_id
        assert torch.equal(content["video"], (of_sample(sample_id, T, 3, H, W) * 255).round().to(torch.uint8))
        assert torch.equal(content["latents"], of_sample(sample_id, FRAMES_IN_LATENTS, CHANNELS, 3, 4))
        assert torch.equal(content["action"], of_sample(sample_id, T - 1, 2))


def test_the_pt_file_does_not_hold_the_rest_of_the_batch(tmp_path: Path) -> None:
    latents = torch.randn(B, FRAMES_IN_LATENTS, CHANNELS, 40, 50)
    predict(tmp_path, PredictionWriter(str(tmp_path)), FirstBatchOnly(), module=Predictor(latents=latents))
    num_bytes = latents[0].numel() * 4 + T * 3 * H * W
    assert (tmp_path / f"{NAMES[0]}.pt").stat().st_size < num_bytes + 5_000


def test_the_json_says_what_the_sample_was_generated_from(folder: Path) -> None:
    content = json.loads((folder / f"{NAMES[3]}.json").read_text())
    assert content == {
        "sample_id": SAMPLE_IDS[3],
        "prompt": "sample 103, größer",
        "seed": 42,
        "generation": GENERATION,
        "run": {"precision": "32-true", "averages": []},
        "checkpoint": None,
        "writer": {"fps": 5, "write_latents": True, "draw_actions": True},
        "files": {"mp4": f"{NAMES[3]}.mp4", "pt": f"{NAMES[3]}.pt"},
        "shapes": {"video": [T, 3, H, W], "latents": [FRAMES_IN_LATENTS, CHANNELS, 3, 4], "action": [T - 1, 2]},
        "action": of_sample(SAMPLE_IDS[3], T - 1, 2).tolist(),
        "sizes": {kind: (folder / f"{NAMES[3]}.{kind}").stat().st_size for kind in ("mp4", "pt")},
    }


def test_the_mp4_shows_generated_and_truth(folder: Path) -> None:
    height, width = ENLARGED
    assert size_of_mp4(folder / f"{NAMES[4]}.mp4") == (T, CAPTION_HEIGHT + height, 2 * width + GAP)


def test_what_the_prediction_does_not_have_is_left_out(tmp_path: Path) -> None:
    optional = ("latents", "action", "truth", "prompt", "seed", "generation")
    predict(tmp_path, PredictionWriter(str(tmp_path)), module=Predictor(**dict.fromkeys(optional)))
    content = json.loads((tmp_path / f"{NAMES[0]}.json").read_text())
    assert content["shapes"] == {"video": [T, 3, H, W]}
    assert all(content[name] is None for name in ("prompt", "seed", "generation", "action"))
    assert torch.load(tmp_path / f"{NAMES[0]}.pt", weights_only=True).keys() == {"sample_id", "video"}
    assert size_of_mp4(tmp_path / f"{NAMES[0]}.mp4") == (T, CAPTION_HEIGHT + ENLARGED[0], ENLARGED[1])


def test_rows_of_a_sample_without_action_are_left_out(tmp_path: Path) -> None:
    predict(
        tmp_path, PredictionWriter(str(tmp_path)), FirstBatchOnly(), module=Predictor(has_action=torch.arange(B) > 0)
    )
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in NAMES[:2])
    assert first["action"] is None and second["action"] is not None
    assert "action" not in torch.load(tmp_path / f"{NAMES[0]}.pt", weights_only=True)


def test_latents_can_be_left_out(tmp_path: Path) -> None:
    predict(tmp_path, PredictionWriter(str(tmp_path), write_latents=False), FirstBatchOnly())
    assert torch.load(tmp_path / f"{NAMES[0]}.pt", weights_only=True).keys() == {"sample_id", "video", "action"}
    assert "latents" not in json.loads((tmp_path / f"{NAMES[0]}.json").read_text())["shapes"]


@pytest.mark.parametrize("draw_actions", [True, False])
def test_the_action_is_drawn_on_request(draw_actions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def keep(path: Path, frames: Tensor, fps: int) -> None:
        path.touch()
        drawn.append(frames)

    monkeypatch.setattr(prediction_writer, "write_mp4", keep)
    grey = Predictor(video=torch.full((B, T, 3, H, W), 128 / 255), truth=None)
    predict(tmp_path, PredictionWriter(str(tmp_path), draw_actions=draw_actions), FirstBatchOnly(), module=grey)
    assert len(drawn) == B
    assert all(bool((frames[:, :, CAPTION_HEIGHT:] != 128).any()) == draw_actions for frames in drawn)


def test_half_precision_is_written_too(tmp_path: Path) -> None:
    half = {
        "video": torch.rand(B, T, 3, H, W).bfloat16(),
        "latents": torch.randn(B, FRAMES_IN_LATENTS, CHANNELS, 3, 4).bfloat16(),
        "action": torch.zeros(B, T, 2).bfloat16(),
    }
    predict(tmp_path, PredictionWriter(str(tmp_path)), FirstBatchOnly(), module=Predictor(**half))
    content = torch.load(tmp_path / f"{NAMES[0]}.pt", weights_only=True)
    assert content["latents"].dtype == torch.bfloat16
    assert json.loads((tmp_path / f"{NAMES[0]}.json").read_text())["action"] == [[0.0, 0.0]] * T


def test_the_json_comes_last_and_not_before_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict(tmp_path, PredictionWriter(str(tmp_path)))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(prediction_writer.torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        predict(tmp_path, PredictionWriter(str(tmp_path)))
    files = {path.name for path in tmp_path.iterdir()}
    # The first sample was to be replaced; neither its old json nor the old manifest may vouch for it.
    assert {f"{name}.json" for name in NAMES} - files == {f"{NAMES[0]}.json"}
    assert "manifest.jsonl" not in files
    assert not [name for name in files if name.startswith(".")]


def test_generation_settings_that_json_does_not_know_are_refused_before_any_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        predict(tmp_path, PredictionWriter(str(tmp_path)), module=Predictor(generation={"dtype": torch.bfloat16}))
    assert list(tmp_path.iterdir()) == []


def test_a_second_prediction_replaces_the_first_and_its_manifest(tmp_path: Path) -> None:
    predict(tmp_path, PredictionWriter(str(tmp_path)))
    before = {path.name for path in tmp_path.iterdir()}
    predict(tmp_path, PredictionWriter(str(tmp_path)), FirstBatchOnly(), module=Predictor(seed=43))
    assert {path.name for path in tmp_path.iterdir()} == before
    seeds = [json.loads((tmp_path / f"{name}.json").read_text())["seed"] for name in NAMES]
    assert seeds == [43] * B + [42] * (NUM_SAMPLES - B)
    assert [record["sample_id"] for record in manifest_of(tmp_path)] == SAMPLE_IDS[:B]


def test_samples_of_all_ranks_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict(tmp_path, PredictionWriter(str(tmp_path)))
    monkeypatch.setattr(prediction_writer, "gather", lambda written: [written, {103, 100}, {104}])
    monkeypatch.setattr(Trainer, "world_size", 3)
    predict(tmp_path, PredictionWriter(str(tmp_path)), FirstBatchOnly())
    assert [record["sample_id"] for record in manifest_of(tmp_path)] == SAMPLE_IDS


def test_samples_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the second takes the place of the first; of two ranks, where a sampler does not repeat as many."""
    same = Predictor(sample_id=torch.tensor([7] * B))
    with pytest.raises(MisconfigurationException, match="two samples have sample_id 7: give every sample"):
        predict(tmp_path, PredictionWriter(str(tmp_path)), FirstBatchOnly(), module=same)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(prediction_writer, "gather", lambda written: [written, {101, 100}])
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(MisconfigurationException, match="two samples have sample_id 10[01]"):
        predict(tmp_path, PredictionWriter(str(tmp_path)), FirstBatchOnly())


def test_one_prediction_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    claim = FolderClaim(tmp_path)
    with pytest.raises(MisconfigurationException, match=f"another prediction is writing to {tmp_path}"):
        predict(tmp_path, PredictionWriter(str(tmp_path)))
    claim.release()
    predict(tmp_path, PredictionWriter(str(tmp_path)))
    assert not (tmp_path / ".lock").exists()


def test_what_a_killed_prediction_left_is_removed_by_the_next(tmp_path: Path) -> None:
    predict(tmp_path, PredictionWriter(str(tmp_path)))
    (tmp_path / ".own-notes.txt").touch()
    expected = set(tmp_path.iterdir())
    for name in ("000999.mp4", "000100.pt", "manifest.jsonl"):
        with replacing(tmp_path / name) as temporary:
            temporary.touch()
        temporary.touch()  # as if it had been killed within the block
    (tmp_path / "000999.mp4").unlink()
    predict(tmp_path, PredictionWriter(str(tmp_path)))
    assert set(tmp_path.iterdir()) == expected


class Resumable(Predictor):
    """A module with weights and known settings that counts what it generates, and may be stopped."""

    def __init__(self, stop_after: int = 99, **changes: Any) -> None:
        super().__init__(**changes)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.stop_after = stop_after
        self.generated: list[int] = []

    def generation_settings(self) -> dict[str, Any]:
        return {"seed": 42, "generation": GENERATION} | self.changes

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        if len(self.generated) >= self.stop_after:
            raise KeyboardInterrupt
        self.generated += batch["sample_id"].tolist()
        commands = {name: batch[name] for name in ("action", "prompt", "prompt_switches") if name in batch}
        prediction = super().predict_step(batch, batch_idx)
        # Drawing and encoding frames is what takes time.
        two_frames = {name: prediction[name][:, :2] for name in ("video", "truth")}
        return prediction | two_frames | commands


class Samples(LightningDataModule):
    def __init__(self, step: float = 1.1, prompt: str = "a", switches: list[list[Any]] | None = None) -> None:
        super().__init__()
        self.step, self.prompt, self.switches = step, prompt, switches
        self.is_wanted: Callable[[dict[str, Any]], bool] = lambda sample: True

    def select_predict_samples(self, is_wanted: Callable[[dict[str, Any]], bool]) -> None:
        self.is_wanted = is_wanted

    def predict_dataloader(self) -> DataLoader[Any]:
        every: list[Any] = [
            {"sample_id": i, "action": torch.full((4, 2), self.step * i), "prompt": self.prompt} for i in SAMPLE_IDS
        ]
        switches = {} if self.switches is None else {"prompt_switches": self.switches}
        wanted = [sample for sample in every if self.is_wanted(sample | switches)]

        def collate(samples: list[Any]) -> dict[str, Any]:
            return default_collate(samples) | {name: [value] * len(samples) for name, value in switches.items()}

        return DataLoader(wanted, batch_size=2, collate_fn=collate)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(Resumable())
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    return tmp_path / "a.ckpt"


def resume(checkpoint: Path | None, *, stop_after: int = 99, **changes: Any) -> list[int]:
    """Predicts into a folder beside the checkpoint, and returns the samples that were generated for it."""
    module = Resumable(stop_after, **{k: v for k, v in changes.items() if k in ("seed", "generation")})
    options = {k: v for k, v in changes.items() if k in ("fps", "resume")}
    folder = changes.get("folder") or checkpoint.parent / "predictions"  # type: ignore[union-attr]
    averages = [EMA()] if changes.get("averages") else []
    callbacks = [*averages, PredictionWriter(str(folder), **options)]
    trainer = quiet_trainer(folder, *callbacks, precision=changes.get("precision", "32-true"))
    data = Samples(**{k: v for k, v in changes.items() if k in ("step", "prompt", "switches")})
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.predict(module, data, ckpt_path=checkpoint, return_predictions=False, weights_only=True)
    return module.generated


def test_a_stopped_prediction_goes_on_where_it_stopped(checkpoint: Path) -> None:
    folder = checkpoint.parent / "predictions"
    assert resume(checkpoint, stop_after=2) == SAMPLE_IDS[:2]
    assert not (folder / "manifest.jsonl").exists()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert resume(checkpoint) == SAMPLE_IDS[2:]
    assert all((folder / name).stat().st_mtime_ns == time for name, time in before.items())
    assert [record["sample_id"] for record in manifest_of(folder)] == SAMPLE_IDS


def test_nothing_is_generated_where_all_is_complete(checkpoint: Path) -> None:
    folder = checkpoint.parent / "predictions"
    resume(checkpoint)
    expected = manifest_of(folder)
    (folder / "manifest.jsonl").unlink()  # as if killed while it was written
    (folder / f".manifest-{'0a' * 16}.jsonl").touch()
    assert resume(checkpoint) == []
    assert manifest_of(folder) == expected
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": 43}, {"generation": GENERATION | {"shift": 3.0}}, {"step": 2.0}, {"fps": 4}, {"resume": False}),
        *({"precision": "bf16-true"}, {"averages": True}, {"prompt": "b"}, {"step": float("nan")}),
        {"switches": [[2, "b"]]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:EMA. there is no average to evaluate with")
def test_what_would_come_out_otherwise_is_generated_again(checkpoint: Path, change: dict[str, Any]) -> None:
    resume(checkpoint)
    assert resume(checkpoint, **change) == SAMPLE_IDS
    assert resume(checkpoint, **{k: v for k, v in change.items() if k != "resume"}) == []


@pytest.mark.parametrize("missing", ["action", "prompt"])
def test_what_was_made_without_an_action_or_a_prompt_is_made_again_under_one(checkpoint: Path, missing: str) -> None:
    class Silent(Resumable):
        def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            return super().predict_step(batch, batch_idx) | {missing: None}

    trainer = quiet_trainer(checkpoint.parent, PredictionWriter())
    trainer.predict(Silent(), Samples(), ckpt_path=checkpoint, return_predictions=False, weights_only=True)
    assert resume(checkpoint) == SAMPLE_IDS
    assert resume(checkpoint) == []


def test_another_checkpoint_generates_everything_again(checkpoint: Path) -> None:
    resume(checkpoint)
    os.utime(checkpoint, ns=(1, 1))
    assert resume(checkpoint) == SAMPLE_IDS
    other = checkpoint.with_name("b.ckpt")
    shutil.copy2(checkpoint, other)
    assert resume(other) == SAMPLE_IDS


def test_without_a_checkpoint_nothing_says_that_the_weights_are_the_same(tmp_path: Path) -> None:
    assert resume(None, folder=tmp_path) == resume(None, folder=tmp_path) == SAMPLE_IDS


@pytest.mark.parametrize("damage", ["cut off", "missing", "no json", "empty json"])
def test_a_sample_that_is_not_complete_is_generated_again(checkpoint: Path, damage: str) -> None:
    resume(checkpoint)
    path = checkpoint.parent / "predictions" / f"{NAMES[1]}.{'json' if 'json' in damage else 'pt'}"
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty json":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert resume(checkpoint) == [SAMPLE_IDS[1]]


def test_modules_and_data_that_do_not_know_of_it_are_predicted_in_full(checkpoint: Path) -> None:
    class Plain(LightningDataModule):
        def predict_dataloader(self) -> DataLoader[Any]:
            return DataLoader([{"sample_id": i} for i in SAMPLE_IDS], batch_size=2)  # type: ignore[arg-type]

    module = Resumable()
    for _ in range(2):
        trainer = quiet_trainer(checkpoint.parent, PredictionWriter())
        trainer.predict(module, Plain(), ckpt_path=checkpoint, return_predictions=False, weights_only=True)
    assert module.generated == 2 * SAMPLE_IDS


class Untouched(Callback):
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise AssertionError("the prediction began")


@pytest.mark.parametrize("output_dir", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_to_stops_before_anything_is_generated(tmp_path: Path, output_dir: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MisconfigurationException, match=r"PredictionWriter\(output_dir=.*can be written to.*file"):
        predict(tmp_path, PredictionWriter(str(tmp_path / output_dir)), Untouched())
    assert (tmp_path / "file").read_text() == "in the way"


def test_only_a_prediction_creates_the_folder(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False)
    PredictionWriter().setup(trainer, Predictor(), stage="fit")
    assert list(tmp_path.iterdir()) == []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no video": ({"video": None}, r"missing: \['video'\], got: \['action'"),
    "no sample_id": ({"sample_id": None}, r"missing: \['sample_id'\]"),
    "video is no tensor": ({"video": [1, 2, 3]}, "got as video list"),
    "channels last": ({"video": torch.rand(B, T, H, W, 3)}, r"got as video torch.float32 \(3, 7, 12, 20, 3\)"),
    "bytes": ({"video": torch.zeros(B, T, 3, H, W, dtype=torch.uint8)}, "got as video torch.uint8"),
    "pixels in [-1, 1]": ({"video": torch.full((B, T, 3, H, W), -0.5)}, "values from -0.5 to -0.5"),
    "nan": ({"video": torch.full((B, T, 3, H, W), float("nan"))}, "values from nan"),
    "one sample_id too few": ({"sample_id": torch.arange(B - 1)}, r"for 3 videos as sample_id torch.int64 \(2,\)"),
    "negative sample_id": ({"sample_id": -torch.arange(B)}, "whole numbers from 0 on"),
    "sample_id is a list": ({"sample_id": [0, 1, 2]}, "as sample_id list"),
    "one prompt too many": ({"prompt": ["a"] * (B + 1)}, "one entry of 'prompt' for each of 3 videos, got 4"),
    "shorter truth": ({"truth": torch.rand(B, T - 1, 3, H, W)}, r"'truth' in the shape of 'video', \(3, 7, .*\(3, 6"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_prediction_that_does_not_fit_is_refused(case: str) -> None:
    changes, message = WRONG[case]
    prediction = Predictor(**changes).predict_step({"sample_id": torch.tensor(SAMPLE_IDS[:B])}, batch_idx=0)
    with pytest.raises(MisconfigurationException, match=f"PredictionWriter expects.*{message}"):
        write(prediction)


@pytest.mark.parametrize("prediction", [None, torch.rand(B, T, 3, H, W)])
def test_a_prediction_that_is_no_dict_is_refused(prediction: Any) -> None:
    with pytest.raises(MisconfigurationException, match="expects predict_step to return a dict.*got (Tensor|NoneType)"):
        write(prediction)


def write(prediction: Any) -> None:
    trainer: Any = None
    module: Any = None
    PredictionWriter().write_on_batch_end(trainer, module, prediction, None, None, 0, 0)


def test_several_dataloaders_are_refused(tmp_path: Path) -> None:
    class TwoLoaders(Predictor):
        def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Any:
            return super().predict_step(batch, batch_idx)

    with pytest.raises(MisconfigurationException, match="expected one predict dataloader, got 2"):
        predict(tmp_path, PredictionWriter(str(tmp_path)), module=TwoLoaders(), num_loaders=2)
    assert list(tmp_path.iterdir()) == []


def test_fps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="fps must be at least 1, got 0"):
        PredictionWriter(fps=0)
