from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.frozen.codec import LinearVideoCodec
from lightning_action.pretrained import export, load_generator, prepare_codec
from tests.helpers import small_generator


class Videos:
    def codec_videos(self) -> Tensor:
        return torch.rand(6, 5, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def fitted() -> LinearVideoCodec:
    codec = LinearVideoCodec(latent_dim=7, patch_size=4)
    prepare_codec(codec, None, Videos())
    return codec


def test_round_trip(tmp_path: Path) -> None:
    generator, codec = small_generator(1), fitted()
    export(tmp_path, generator, codec, 12.5)
    other, loaded = small_generator(2), LinearVideoCodec(latent_dim=7, patch_size=4)
    assert not torch.equal(other.head.head.weight, generator.head.head.weight)
    assert load_generator(other, str(tmp_path)) == 12.5
    prepare_codec(loaded, str(tmp_path), None)
    for ours, theirs in ((generator, other), (codec, loaded)):
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no generator.safetensors in .*export_weights"):
        load_generator(small_generator(), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no vae.safetensors in"):
        prepare_codec(LinearVideoCodec(7, 4), str(tmp_path), Videos())
    export(tmp_path, small_generator(), fitted(), 0.0)
    with pytest.raises(ValueError, match="does not fit CausalWanModel"):
        load_generator(small_generator(ffn_dim=50), str(tmp_path))
    with pytest.raises(ValueError, match="does not fit LinearVideoCodec"):
        prepare_codec(LinearVideoCodec(6, 4), str(tmp_path), None)
    with pytest.raises(ValueError, match="LinearVideoCodec is fitted to training videos"):
        prepare_codec(LinearVideoCodec(7, 4), None, object())
