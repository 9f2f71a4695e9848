"""The network that reads actions off pixels: what it looks at, what it says, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action import ActionPart, ActionSchema
from lightning_action.evaluation.metrics.inverse_dynamics_model import (
    DESCRIPTION,
    WEIGHTS,
    Column,
    InverseDynamicsModel,
    classes_of,
    columns_of,
    load_inverse_dynamics,
    rows_between_frames,
    save_inverse_dynamics,
    shrunk,
)

PARTS = [ActionPart("move", "continuous", 2), ActionPart("key", "discrete", 5), ActionPart("grip", "multi_hot", 2)]


def training_rows(count: int = 300) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.cat(
        [
            torch.tensor([3.0, -7.0]) + torch.tensor([2.0, 0.5]) * torch.randn(count, 2, generator=random),
            torch.randint(5, (count, 1), generator=random).float(),
            torch.randint(2, (count, 2), generator=random).float(),
        ],
        dim=-1,
    )


def build(rows_per_frame: int = 1, seed: int = 0) -> InverseDynamicsModel:
    schema = ActionSchema(PARTS, rows_per_frame=rows_per_frame)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return InverseDynamicsModel(schema, columns_of(schema, training_rows()), channels=(8, 16, 24)).eval()


def test_columns_know_what_training_actions_are() -> None:
    x, y, key, *grips = columns_of(ActionSchema(PARTS), training_rows())
    assert (x.name, y.name, key.name, [grip.name for grip in grips]) == (
        "move_0",
        "move_1",
        "key",
        ["grip_0", "grip_1"],
    )
    assert [column.num_outputs for column in (x, y, key, *grips)] == [1, 1, 5, 1, 1]
    assert x.mean == pytest.approx(3, abs=0.3) and y.std == pytest.approx(0.5, abs=0.1)
    assert x.classes(training_rows()[:, 0]).bincount().tolist() == [100, 100, 100]
    named = columns_of(ActionSchema(PARTS), training_rows(), list("abcde"))
    assert [column.name for column in named] == list("abcde")


def test_a_column_that_never_changes_has_a_deviation_all_the_same() -> None:
    column, *_ = columns_of(ActionSchema([ActionPart("x", "continuous", 1)]), torch.full((4, 1), 2.0))
    assert (column.mean, column.std) == (2, 1)


def test_values_are_in_the_units_of_the_actions() -> None:
    x, _, key, grip, _ = columns_of(ActionSchema(PARTS), training_rows())
    exact = (torch.tensor([[5.0]]) - x.mean) / x.std
    assert x.value(exact).item() == pytest.approx(5)
    assert x.loss(exact, torch.tensor([5.0])) < 1e-10
    assert key.value(torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0])) == 1
    assert key.features(torch.tensor([4.0])).tolist() == [[0, 0, 0, 0, 1]]
    assert grip.value(torch.tensor([[-0.1], [0.1]])).tolist() == [0, 1]


@pytest.mark.parametrize(("height", "width"), [(16, 24), (32, 32), (120, 256)])
@pytest.mark.parametrize("rows_per_frame", [1, 3])
def test_rows_are_read_off_frames_of_any_size(height: int, width: int, rows_per_frame: int) -> None:
    model = build(rows_per_frame)
    read = model.read(torch.rand(2, 5, 3, height, width, generator=torch.Generator().manual_seed(0)))
    assert read.shape == (2, 4 * rows_per_frame, 5)
    assert classes_of(model.columns, read)[..., 2].max() < 5
    assert sum(parameter.numel() for parameter in InverseDynamicsModel(model.schema, model.columns).parameters()) < 1e6


def test_a_step_is_read_off_the_frames_around_it_alone() -> None:
    model = build()
    video = torch.rand(1, 9, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    changed = video.clone()
    changed[:, 5] = 0
    # Frame 5 is one of k - 1 ... k + 2 for the steps k = 3 ... 6.
    differs = (model(model.windows(video)[0]) != model(model.windows(changed)[0])).flatten(1).any(dim=1)
    assert differs.tolist() == [False] * 3 + [True] * 4 + [False]
    assert model.windows(video)[0, 0, 0].equal(video[0, 0]) and model.windows(video)[0, -1, -1].equal(video[0, -1])


def test_it_reads_as_exactly_under_mixed_precision() -> None:
    model = build()
    video = torch.rand(1, 5, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        read = model.read(video)
    assert read.dtype == torch.float32 and read.equal(model.read(video))


def test_it_learns() -> None:
    """The place of a bar says where it goes next: one row of one column."""
    schema = ActionSchema([ActionPart("x", "continuous", 1)])
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(24, 1, 1, generator=random)
    columns = torch.arange(16.0)
    places = 8 + torch.stack([0 * rows, 0 * rows, 2 * rows, 2 * rows], dim=1)[:, :, 0, :, None, None]
    windows = (1 - (columns - places).abs() / 2).clamp(0, 1).expand(-1, -1, 3, 16, -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = InverseDynamicsModel(schema, columns_of(schema, rows[:, 0]), channels=(8, 16, 24))
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    first = model.loss(windows, rows).item()
    for _ in range(25):
        optimizer.zero_grad()
        model.loss(windows, rows).backward()
        optimizer.step()
    assert model.loss(windows, rows).item() < 0.1 * first


def test_rows_that_lead_from_frame_to_frame() -> None:
    rows = torch.arange(9.0)[None, :, None]
    assert rows_between_frames(rows[:, :8], ActionSchema(alignment="transition")).flatten().tolist() == list(range(8))
    assert rows_between_frames(rows, ActionSchema(alignment="state")).flatten().tolist() == list(range(1, 9))
    of_latents = rows_between_frames(rows[:, :3], ActionSchema(alignment="per_latent")).flatten().tolist()
    assert of_latents == [1, 1, 1, 1, 2, 2, 2, 2]


def test_frames_are_made_smaller_only_where_they_are_large() -> None:
    assert shrunk(torch.zeros(1, 2, 3, 96, 48)).shape[-2:] == (96, 48)
    assert shrunk(torch.zeros(1, 2, 3, 128, 256)).shape[-2:] == (48, 96)


def test_what_was_written_reads_the_same(tmp_path: Path) -> None:
    model = build(3)
    save_inverse_dynamics(tmp_path / "idm", model, {"r2_move_0": 0.9, "videos": 7})
    again = load_inverse_dynamics(tmp_path / "idm")
    video = torch.rand(2, 5, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    assert again.read(video).equal(model.read(video)) and not again.training
    assert (again.schema, again.columns) == (model.schema, model.columns)
    assert json.loads((tmp_path / "idm" / DESCRIPTION).read_text())["held_out"] == {"r2_move_0": 0.9, "videos": 7}
    with pytest.raises(FileExistsError, match="is there already"):
        save_inverse_dynamics(tmp_path / "idm", model, {})
    save_inverse_dynamics(tmp_path / "idm", build(), {}, overwrite=True)
    assert load_inverse_dynamics(tmp_path / "idm").rows_per_step == 1


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="main.py inverse-dynamics` makes one"):
        load_inverse_dynamics(tmp_path)
    save_inverse_dynamics(tmp_path / "idm", build(), {})
    told = json.loads((tmp_path / "idm" / DESCRIPTION).read_text())
    for broken in ("{", "[]", json.dumps({**told, "channels": [8, 16, 32]}), json.dumps({**told, "columns": [{}]})):
        (tmp_path / "idm" / DESCRIPTION).write_text(broken)
        with pytest.raises(ValueError, match="is no inverse-dynamics model"):
            load_inverse_dynamics(tmp_path / "idm")
    (tmp_path / "idm" / DESCRIPTION).write_text(json.dumps(told))
    (tmp_path / "idm" / WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(ValueError, match="is no inverse-dynamics model"):
        load_inverse_dynamics(tmp_path / "idm")


def test_other_actions_are_refused() -> None:
    model = build()
    model.require_reads(ActionSchema([ActionPart("move", low=-2.0), *PARTS[1:]], combine="mean"))
    for other in (ActionSchema(), ActionSchema(PARTS, alignment="state"), ActionSchema(PARTS, rows_per_frame=2)):
        with pytest.raises(ValueError, match="the inverse-dynamics model reads the actions move"):
            model.require_reads(other)


def test_a_column_says_what_it_is() -> None:
    assert Column("grip", "multi_hot", 2).classes(torch.tensor([1.0, 0.0])).tolist() == [1, 0]


@pytest.mark.parametrize("rows_per_frame", [1, 2])
def test_of_no_videos_nothing_is_read(rows_per_frame: int) -> None:
    """Of a batch in which no clip has actions."""
    read = build(rows_per_frame).read(torch.zeros(0, 5, 3, 32, 32))
    assert read.shape == (0, 4 * rows_per_frame, 5)
