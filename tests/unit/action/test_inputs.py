"""What callers hand in as actions, as modulation. What a call of the pipeline makes of it: `test_pipeline.py`."""

from __future__ import annotations

import pytest
import torch

from lightning_action.action.inputs import ActionToModulation
from lightning_action.action.projection import ActionModulationProjection, SummedModulation
from tests.helpers import fill

BATCH, FRAMES, WIDTH, LAYERS, DIM = 2, 5, 3, 4, 8


def made(num_layers: int | None = None) -> ActionModulationProjection:
    projection = ActionModulationProjection(WIDTH, DIM, hidden_dim=7, num_layers=num_layers, layer_rank=6)
    fill(projection, scale=1.0)
    return projection


def to_modulation(projection: ActionModulationProjection | SummedModulation, scale: float = 1.0) -> ActionToModulation:
    return ActionToModulation(projection, scale, LAYERS, DIM)


@pytest.mark.parametrize("num_layers", [None, LAYERS])
def test_features_become_modulation_of_every_frame(num_layers: int | None) -> None:
    projection = made(num_layers)
    features = torch.randn(BATCH, FRAMES, WIDTH)
    modulation = to_modulation(projection, 0.5)(features, BATCH, FRAMES)
    assert torch.equal(modulation, 0.5 * projection(features))
    one = to_modulation(projection)(features[:, 0], BATCH, FRAMES)
    assert torch.equal(one, projection(features[:, :1].expand(-1, FRAMES, -1)))


def test_ready_modulation_is_taken_as_it_is() -> None:
    for shape in ((BATCH, FRAMES, 6, DIM), (BATCH, FRAMES, LAYERS, 6, DIM)):
        modulation = torch.randn(shape)
        assert torch.equal(to_modulation(made(), 0.5)(modulation, BATCH, FRAMES), modulation)


def test_types_follow_the_projection() -> None:
    acts = to_modulation(made().double())
    assert acts(torch.randn(BATCH, WIDTH), BATCH, FRAMES).dtype == torch.float64
    assert acts(torch.randn(BATCH, FRAMES, 6, DIM), BATCH, FRAMES).dtype == torch.float64


@pytest.mark.parametrize(
    "shape", [(BATCH, FRAMES, 6, DIM + 1), (BATCH, FRAMES, LAYERS + 1, 6, DIM), (1, FRAMES, 6, DIM)]
)
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="got modulation"):
        to_modulation(made())(torch.randn(shape), BATCH, FRAMES)


@pytest.mark.parametrize("values", [None, [[1.0, 2.0, 3.0]] * BATCH])
def test_what_is_no_tensor_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match=r"action_features must be \[B, A\] or .*, got (NoneType|list)"):
        to_modulation(made()).whole_video({"action_features": values}, BATCH, FRAMES, 0)


def test_a_whole_video_may_leave_its_first_frames_out() -> None:
    projection = made()
    features = torch.randn(BATCH, FRAMES, WIDTH)
    modulation = to_modulation(projection).whole_video({"action_features": features}, BATCH, FRAMES + 2, 2)
    assert torch.equal(modulation[:, :2], torch.zeros(BATCH, 2, 6, DIM))
    assert torch.equal(modulation[:, 2:], projection(features))
    same = to_modulation(projection).whole_video({"action_features": features[:, 0]}, BATCH, FRAMES + 2, 2)
    torch.testing.assert_close(same, same[:, :1].expand(-1, FRAMES + 2, -1, -1), atol=1e-6, rtol=0)


def test_conditions_are_for_the_same_frames() -> None:
    acts = to_modulation(SummedModulation({"action": made(), "style": made()}))
    features = {"action": torch.randn(BATCH, FRAMES, WIDTH), "style": torch.randn(BATCH, FRAMES - 1, WIDTH)}
    with pytest.raises(ValueError, match="are for 4 and 5 latent frames: expected 5, one for each of the video, or 4"):
        acts.whole_video({"action_features": features}, BATCH, FRAMES, 1)
