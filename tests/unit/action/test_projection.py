"""From action vectors to modulation: exactly nothing at first, then what it was taught."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.action.projection import (
    ActionModulationProjection,
    FourierFeatures,
    null_where_absent,
)
from tests.support.small_generator import fill

BATCH, FRAMES, WIDTH, DIM, HIDDEN, LAYERS, RANK = 2, 5, 3, 8, 7, 4, 6
FORMS: list[dict[str, Any]] = [{}, {"num_layers": LAYERS, "layer_rank": RANK}]


def projection(**changes: Any) -> ActionModulationProjection:
    return ActionModulationProjection(WIDTH, DIM, **{"hidden_dim": HIDDEN, **changes})


def perturbed(**changes: Any) -> ActionModulationProjection:
    torch.manual_seed(1)
    made = projection(**changes)
    fill(made, scale=1.0)
    return made


def shape_of(form: dict[str, Any], frames: int = FRAMES) -> tuple[int, ...]:
    layers = (form["num_layers"],) if form else ()
    return (BATCH, frames, *layers, 6, DIM)


@pytest.mark.parametrize("form", FORMS)
def test_a_new_projection_gives_exactly_zero(form: dict[str, Any]) -> None:
    modulation = projection(**form)(torch.randn(BATCH, FRAMES, WIDTH))
    assert torch.equal(modulation, torch.zeros(shape_of(form)))


@pytest.mark.parametrize("form", FORMS)
def test_zero_init_is_a_choice(form: dict[str, Any]) -> None:
    made = projection(zero_init=False, **form)
    weight = made.action_projection.weight
    assert 0.8e-3 < weight.std().item() < 1.2e-3
    assert torch.equal(made.action_projection.bias, torch.zeros(len(weight)))
    assert bool((made(torch.randn(BATCH, FRAMES, WIDTH)) != 0).all())


@pytest.mark.parametrize("form", FORMS)
def test_gradient_reaches_the_last_layer_first_and_then_every_layer(form: dict[str, Any]) -> None:
    made = projection(**form)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    action, wanted = torch.randn(BATCH, FRAMES, WIDTH), torch.randn(shape_of(form))

    def reached() -> set[str]:
        optimizer.zero_grad()
        (made(action) - wanted).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in made.named_parameters()}
        return {name for name, gradient in gradients.items() if gradient is not None and bool(gradient.any())}

    assert reached() == {"action_projection.weight", "action_projection.bias"}
    optimizer.step()
    assert reached() == {name for name, _ in made.named_parameters()}


@pytest.mark.parametrize("form", FORMS)
def test_one_vector_is_repeated_over_the_frames(form: dict[str, Any]) -> None:
    made = perturbed(num_frames=FRAMES, num_fourier_bands=2, **form)
    action = torch.randn(BATCH, WIDTH)
    modulation = made(action)
    assert torch.equal(modulation, made(action[:, None].repeat(1, FRAMES, 1)))
    assert modulation.shape == shape_of(form)
    assert bool((modulation != 0).all())


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_depends_on_its_own_action_alone(form: dict[str, Any]) -> None:
    made = perturbed(**form)
    action = torch.randn(BATCH, FRAMES, WIDTH)
    before = made(action)
    action[1, 3] += 1
    after = made(action)
    changed = (after != before).flatten(2).any(-1)
    assert changed.nonzero().tolist() == [[1, 3]]


def test_layers_get_modulations_of_their_own() -> None:
    modulation = perturbed(num_layers=LAYERS, layer_rank=RANK)(torch.randn(BATCH, FRAMES, WIDTH))
    pairs = [(one, other) for one in range(LAYERS) for other in range(one)]
    assert all(not torch.equal(modulation[:, :, one], modulation[:, :, other]) for one, other in pairs)


@pytest.mark.parametrize("form", FORMS)
def test_frames_without_an_action_get_exactly_nothing(form: dict[str, Any]) -> None:
    made = perturbed(**form)
    action = torch.randn(BATCH, FRAMES, WIDTH)
    present = torch.tensor([[False, True, True, False, True], [True, False, True, True, False]])
    modulation = made(action, present)
    assert torch.equal(modulation[~present], torch.zeros_like(modulation[~present]))
    assert torch.equal(modulation[present], made(action)[present])
    assert bool((modulation[present] != 0).all())


def test_absent_frames_are_nothing_even_where_the_modulation_is_not_finite() -> None:
    modulation = torch.full((BATCH, FRAMES, 6, DIM), float("nan"))
    present = torch.zeros(BATCH, FRAMES, dtype=torch.bool)
    assert torch.equal(null_where_absent(modulation, present), torch.zeros_like(modulation))


def test_absent_frames_give_no_gradient() -> None:
    made = perturbed()
    action = torch.randn(BATCH, FRAMES, WIDTH, requires_grad=True)
    present = torch.ones(BATCH, FRAMES, dtype=torch.bool)
    present[1, 2] = False
    made(action, present).sum().backward()
    assert action.grad is not None
    assert torch.equal((action.grad != 0).any(-1), present)


def test_fourier_features_stand_in_the_documented_order() -> None:
    features = FourierFeatures(num_bands=2, lowest_band=0.5, include_raw=True)
    action = torch.tensor([0.3, -0.7, 0.9], dtype=torch.float64)
    expected = action.tolist()
    for value in action.tolist():
        angles = [math.pi * 0.5 * value, math.pi * value]
        expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    result = features(action)
    assert features.width(3) == len(expected) == 15
    # The bands are float32.
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), atol=3e-7, rtol=0)


@pytest.mark.parametrize("include_raw", [False, True])
def test_raw_values_are_a_choice(include_raw: bool) -> None:
    features = FourierFeatures(num_bands=4, lowest_band=1.0, include_raw=include_raw)
    action = torch.randn(BATCH, FRAMES, WIDTH)
    result = features(action)
    assert result.shape == (BATCH, FRAMES, features.width(WIDTH)) == (BATCH, FRAMES, WIDTH * (8 + include_raw))
    if include_raw:
        assert torch.equal(result[..., :WIDTH], action)
    else:
        assert result.abs().max() <= 1


def test_no_bands_leave_the_raw_values() -> None:
    action = torch.randn(BATCH, WIDTH)
    assert torch.equal(FourierFeatures(num_bands=0, lowest_band=0.5, include_raw=True)(action), action)


def test_the_lowest_band_decides_whether_full_left_equals_full_right() -> None:
    def waves(lowest_band: float, value: float) -> Tensor:
        return FourierFeatures(3, lowest_band, include_raw=False)(torch.tensor([value]))

    # sin(pi) is not exactly zero in float32.
    torch.testing.assert_close(waves(1.0, 1.0), waves(1.0, -1.0), atol=1e-6, rtol=0)
    assert (waves(0.5, 1.0) - waves(0.5, -1.0)).abs().max() > 1.9


def test_no_features_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="num_fourier_bands > 0 or include_raw_actions"):
        projection(num_fourier_bands=0, include_raw_actions=False)


@pytest.mark.parametrize("form", FORMS)
def test_scales_multiply_slots_and_the_whole(form: dict[str, Any]) -> None:
    slots = (1.0, 2.0, 0.5, -1.0, 0.0, 4.0)
    action = torch.randn(BATCH, FRAMES, WIDTH)
    plain = perturbed(**form)(action)
    scaled = perturbed(slot_scales=slots, action_modulation_scale=0.25, **form)(action)
    assert bool((plain != 0).all())
    for slot, scale in enumerate(slots):
        assert torch.equal(scaled[..., slot, :], 0.25 * scale * plain[..., slot, :])


def test_slot_scales_must_be_six() -> None:
    with pytest.raises(ValueError, match=r"slot_scales are six .* got \[1.0, 2.0\]"):
        projection(slot_scales=(1.0, 2.0))


@pytest.mark.parametrize("shape", [(BATCH, FRAMES, WIDTH + 1), (BATCH, WIDTH - 1), (WIDTH,), (1, BATCH, FRAMES, WIDTH)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected actions \[B, 3\] or \[B, F, 3\], got"):
        projection()(torch.zeros(*shape))


def count(**changes: Any) -> dict[str, int]:
    """Parameters by part at the sizes of a 1.3B model, without memory for them."""
    with torch.device("meta"):
        made = ActionModulationProjection(8, 1536, hidden_dim=512, **changes)
    counts = {"embedding": 0, "bottleneck": 0, "last": 0}
    names = {"action_embedding": "embedding", "layer_bottleneck": "bottleneck", "action_projection": "last"}
    for name, parameter in made.named_parameters():
        counts[names[name.split(".")[0]]] += parameter.numel()
    return counts


def test_the_per_layer_form_stays_small() -> None:
    per_layer = count(num_layers=30, layer_rank=32)
    assert sum(per_layer.values()) < 10_000_000
    # The figures of the class docstring are of what makes the modulation per layer.
    assert round((per_layer["bottleneck"] + per_layer["last"]) / 1e6, 1) == 9.1
    directly = torch.nn.Linear(512, 30 * 6 * 1536, device="meta")
    assert round(sum(parameter.numel() for parameter in directly.parameters()) / 1e6) == 142
    shared = count()
    assert shared["bottleneck"] == 0
    assert shared["last"] == (512 + 1) * 6 * 1536
    assert shared["embedding"] == per_layer["embedding"]
    docstring = ActionModulationProjection.__doc__
    assert docstring is not None
    assert "9.1 M parameters instead of 142 M" in docstring


def test_the_shared_form_has_the_names_and_shapes_of_the_public_checkpoint_format() -> None:
    made = ActionModulationProjection(2, 80, hidden_dim=48, num_fourier_bands=8, lowest_band=1.0)
    assert {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()} == {
        "action_embedding.0.weight": (48, 34),
        "action_embedding.0.bias": (48,),
        "action_embedding.1.weight": (48,),
        "action_embedding.1.bias": (48,),
        "action_embedding.3.weight": (48, 48),
        "action_embedding.3.bias": (48,),
        "action_projection.weight": (480, 48),
        "action_projection.bias": (480,),
    }


def test_the_per_layer_form_adds_only_the_bottleneck() -> None:
    shared, per_layer = projection().state_dict(), projection(num_layers=LAYERS, layer_rank=RANK).state_dict()
    assert per_layer.keys() - shared.keys() == {"layer_bottleneck.weight", "layer_bottleneck.bias"}
    assert tuple(per_layer["layer_bottleneck.weight"].shape) == (RANK, HIDDEN)
    assert tuple(per_layer["action_projection.weight"].shape) == (LAYERS * 6 * DIM, RANK)
