"""Sums over the modulation that actions make, from which its statistics follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from math import sqrt

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from .collectives import sum_of_squares, sum_over_ranks

SLOTS = ("shift_sa", "scale_sa", "gate_sa", "shift_ffn", "scale_ffn", "gate_ffn")
_NUM_SAMPLED = 65_536


class ModulationSums:
    """Sums of one step on this rank, on the device. All sizes are fixed, because those of all ranks must agree.

    A frame whose modulation is exactly zero is a null frame: it has no action, and counts in `null_frames` only.
    `max_frames` latent frames are told apart, and `num_layers` layers; 0 leaves layers out.
    """

    def __init__(self, num_layers: int, max_frames: int, device: torch.device) -> None:
        sizes = {"slots": len(SLOTS), "by_frame": max_frames, "frame_counts": max_frames}
        sizes |= {"by_layer": num_layers, "tables": num_layers}
        scalars = ("norms", "ones", "frames", "null_frames", "changes", "change_scales", "time_norms", "times")
        sizes |= dict.fromkeys((*scalars, "gradient"), 1)
        self.sums = {name: torch.zeros(size, device=device) for name, size in sizes.items()}
        self.sample = torch.zeros(0, device=device)
        self.per_layer = False

    @torch.no_grad()
    def add_modulation(self, modulation: Tensor, actions: Tensor | None) -> None:
        """Add up a modulation `[B, F, 6, D]` or `[B, F, L, 6, D]`, and its change with the actions `[B, F, N]`."""
        self.per_layer = modulation.ndim == 5
        layers = modulation.detach().float() if self.per_layer else modulation.detach().float()[:, :, None]
        slots = vector_norm(layers, dim=-1)
        norms = vector_norm(slots, dim=-1)
        present = (norms != 0).any(dim=-1)
        num_frames = min(len(self.sums["by_frame"]), modulation.shape[1])

        self.sums["slots"] += slots.mean(dim=2).sum(dim=(0, 1))
        if num_layers := len(self.sums["by_layer"]):
            self.sums["by_layer"] += norms.sum(dim=(0, 1)).expand(num_layers)
        self.sums["by_frame"][:num_frames] += norms.mean(dim=2).sum(dim=0)[:num_frames]
        self.sums["frame_counts"][:num_frames] += present.sum(dim=0)[:num_frames]
        self.sums["norms"] += norms.mean(dim=2).sum()
        self.sums["frames"] += present.sum()
        self.sums["null_frames"] += present.logical_not().sum()
        self.sums["ones"] += present.sum() * sqrt(slots.shape[-1] * layers.shape[-1])
        if actions is not None:
            self._add_changes(layers, norms.square().sum(dim=2), present, actions)
        self.sample = layers.flatten()[:: 1 + layers.numel() // _NUM_SAMPLED]

    @torch.no_grad()
    def add_time(self, modulation: Tensor) -> None:
        """Add up the time modulation `[..., 6 D]`."""
        norms = vector_norm(modulation.detach().float(), dim=-1)
        self.sums["time_norms"] += norms.sum()
        self.sums["times"] += norms.numel()

    def add_gradient(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of the projection."""
        for parameter in parameters:
            if parameter.grad is not None:
                self.sums["gradient"] += sum_of_squares(parameter.grad)

    def set_tables(self, tables: Sequence[nn.Parameter]) -> None:
        """Take the tables of all layers."""
        if tables:
            self.sums["tables"] = torch.stack([sum_of_squares(table) for table in tables])

    def reduce(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return the sums of all ranks and values of this one's modulation, on the CPU; wait for the device once."""
        whole = sum_over_ranks(torch.cat(list(self.sums.values())))
        *pieces, sample = torch.cat([whole, self.sample]).cpu().split([*map(len, self.sums.values()), len(self.sample)])
        return dict(zip(self.sums, (piece.double() for piece in pieces), strict=True)), sample

    def _add_changes(self, layers: Tensor, squares: Tensor, present: Tensor, actions: Tensor) -> None:
        """Add up the change between successive frames whose actions differ, and what it is measured by."""
        differ = (actions[:, 1:] != actions[:, :-1]).any(dim=-1) & present[:, 1:] & present[:, :-1]
        changes = (layers[:, 1:] - layers[:, :-1]).square().flatten(2).sum(dim=-1)
        nothing = torch.zeros_like(changes)
        self.sums["changes"] += torch.where(differ, changes, nothing).sum()
        self.sums["change_scales"] += torch.where(differ, squares[:, 1:] + squares[:, :-1], nothing).sum()


def figures(sums: dict[str, Tensor], per_layer: bool) -> dict[str, float]:
    """Figures that are logged of reduced sums; none that is not defined."""
    total = {name: values.item() for name, values in sums.items() if len(values) == 1}
    frames = sums["frames"].clamp(min=1)
    mean_time = sums["time_norms"] / sums["times"].clamp(min=1)
    found = {"projection_grad_norm": sqrt(total["gradient"])}
    found |= _ratios("modulation_norm", ["all"], sums["norms"], frames)
    found |= _ratios("modulation_norm", SLOTS, sums["slots"], frames)
    found |= _ratios("modulation_norm_by_frame", _numbered("frame"), sums["by_frame"], sums["frame_counts"])
    found |= _ratios("modulation_to_time", ["all"], sums["norms"] / frames, mean_time)
    if per_layer:
        found |= _ratios("modulation_to_time", _numbered("layer"), sums["by_layer"] / frames, mean_time)
    mean_table = sums["tables"].sqrt().sum() / max(1, len(sums["tables"]))
    base = sums["ones"] / frames + mean_time + mean_table
    found |= _ratios("modulation_to_base", ["all"], sums["norms"] / frames, base)
    found |= _ratios("modulation_to_table", _numbered("layer"), sums["by_layer"] / frames, sums["tables"].sqrt())
    if total["change_scales"]:
        found["modulation_variation"] = sqrt(total["changes"] / total["change_scales"])
    if all_frames := total["frames"] + total["null_frames"]:
        found["null_share"] = total["null_frames"] / all_frames
    return found


def _numbered(name: str) -> Iterator[str]:
    return (f"{name}_{number:02d}" for number in count())


def _ratios(tag: str, names: Iterable[str], parts: Tensor, wholes: Tensor) -> dict[str, float]:
    """Ratios under their names, as far as there is something to divide by."""
    pairs = zip(names, *(values.tolist() for values in torch.broadcast_tensors(parts, wholes)), strict=False)
    return {f"{tag}/{name}": part / whole for name, part, whole in pairs if whole}
