"""A small convolutional video codec with the geometry of a causal video VAE, fitted to the training data in minutes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from lightning_action.frozen.interfaces import CodecStream, FittedCodec, Memory
from lightning_action.ranges import require_numbers

# Pixel rows, and columns, that the first layer of the encoder folds into channels.
_FOLD = 4
# 0 would measure errors in colours as they are, 1 in whitened ones.
_WHITENING = 0.8
# Frames that pass through the network at once, and those that codes and errors are measured on.
_CHUNK, _NUM_MEASURED = 256, 4096


class ConvVideoCodec(FittedCodec):
    """A convolutional autoencoder of single frames; the codes of r frames, mixed in time, are one latent frame.

    It is causal in time, `T = 1 + r (F - 1)` pixel frames to F latent frames, with the interface of the real video
    VAEs: latent frame 0 stands for r times the first frame. Frames are encoded one by one because a network that codes
    r of them together needs many more examples for the same pictures.

    It is fitted with noise on the codes, and without some positions of them. So neighbours come to tell the same, and
    what the generator gets slightly wrong decodes to a clean picture. Consecutive frames are fitted together, and the
    absolute difference of their codes is kept small: codes change where the picture does and hardly elsewhere, as in
    slow feature analysis (Wiskott and Sejnowski 2002, doi:10.1162/089976602317318938). Errors are measured in partly
    whitened colours: a small object with a colour of its own would else be the last thing learned.

    Consecutive codes are nearly the same, so that what an action does in the last of r frames would hardly be seen in
    them. Therefore the r codes of a latent frame are mixed by a matrix, `S^(-w / 2)` up to a factor: S holds the second
    moments of r consecutive codes, and w is `time_whitening`. With w = 1 it is ZCA whitening (Bell and Sejnowski 1997,
    doi:10.1016/S0042-6989(97)00121-1), of which colours get a share, too; shares of it are this project's own.

    Args:
        latent_dim: Number of latent channels C, a multiple of `temporal_compression_ratio`.
        spatial_compression_ratio: Number of pixel rows, and of columns, of one latent position: 4, 8, 16 or so on.
        temporal_compression_ratio: Number r of pixel frames of one latent frame.
        width: Number of channels of the decoder at its highest resolution.
        num_blocks: Number of residual blocks of the decoder at each resolution.
        encoder_width: Number of channels of the encoder at its highest resolution, where it is another: a narrow one
            saves time where videos are encoded in each training step.
        num_steps: Number of optimizer steps of the fit.
        batch_size: Number of frames of a step, half of them the next ones of the others.
        learning_rate: Highest learning rate of the fit.
        noise: Deviation of the noise on the codes, whose own is 1.
        dropout: Share of positions whose codes are left out.
        change_weight: Weight of the absolute difference of the codes of consecutive frames.
        time_whitening: Share w, from 0 to 1, of the whitening of latents in time: 0 leaves codes side by side, with 1
            what changes within a latent frame is as loud as what stays.
        seed: Random seed of initial weights, order and noise.
    """

    color: Tensor
    mean: Tensor
    scale: Tensor
    mixing: Tensor

    def __init__(
        self,
        latent_dim: int = 24,
        spatial_compression_ratio: int = 8,
        temporal_compression_ratio: int = 4,
        width: int = 64,
        num_blocks: int = 1,
        encoder_width: int | None = None,
        num_steps: int = 1500,
        batch_size: int = 32,
        learning_rate: float = 2e-3,
        noise: float = 0.6,
        dropout: float = 0.15,
        change_weight: float = 0.5,
        time_whitening: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        encoder_width = width if encoder_width is None else encoder_width
        sizes = {"width": width, "num_blocks": num_blocks, "encoder_width": encoder_width}
        counts = {"num_steps": num_steps, "batch_size": batch_size}
        require_numbers({**sizes, **counts, "temporal_compression_ratio": temporal_compression_ratio}, 1, whole=True)
        require_numbers({"learning_rate": learning_rate, "noise": noise, "change_weight": change_weight}, 0)
        require_numbers({"dropout": dropout}, 0, 1, without_high=True)
        require_numbers({"time_whitening": time_whitening}, 0, 1)
        num_halvings = round(math.log2(max(spatial_compression_ratio / _FOLD, 1)))
        if spatial_compression_ratio != _FOLD * 2**num_halvings:
            raise ValueError(
                f"spatial_compression_ratio is {_FOLD} times a power of 2, got {spatial_compression_ratio}"
            )
        if latent_dim < 1 or latent_dim % temporal_compression_ratio:
            raise ValueError(
                f"latent_dim is a multiple of temporal_compression_ratio {temporal_compression_ratio}, of which each "
                f"pixel frame has its share, got {latent_dim}"
            )
        self.latent_dim = latent_dim
        self.spatial_compression_ratio = spatial_compression_ratio
        self.temporal_compression_ratio = temporal_compression_ratio
        self.num_steps, self.batch_size, self.learning_rate = num_steps, batch_size, learning_rate
        self.noise, self.dropout, self.change_weight, self.seed = noise, dropout, change_weight, seed
        self.time_whitening = time_whitening
        code_dim = latent_dim // temporal_compression_ratio
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = _encoder(code_dim, encoder_width, num_halvings)
            self.decoder = _decoder(code_dim, width, num_blocks, num_halvings)
        self.register_buffer("color", torch.zeros(3, 1, 1))
        self.register_buffer("mean", torch.zeros(code_dim, 1, 1))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("mixing", torch.eye(temporal_compression_ratio))

    @property
    def fitted(self) -> bool:
        """Flag that says whether `fit` was called or fitted tensors were loaded."""
        return bool(self.scale > 0)

    def fit(self, video: Tensor) -> None:
        """Fit to training videos `[B, T, 3, H, W]` in [-1, 1]; the same videos and seed give the same codec.

        Raises:
            ValueError: The videos are no whole number of latent frames, or hold a value that is not finite.
            RuntimeError: The fit failed: a single picture in place of all frames would have been as good.
        """
        self.require_video(video)
        if not bool(torch.isfinite(video).all()):
            raise ValueError("the training videos hold NaN or infinity: check the data set")
        frames = video.flatten(0, 1)
        self.color.copy_(frames.mean((0, 2, 3))[:, None, None])
        self.requires_grad_(True)
        # Whoever fits may compute without gradient, or in another precision.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            metric = _colour_metric(frames)
            self._train(video, metric)
        self.requires_grad_(False)
        every = math.ceil(len(frames) / _NUM_MEASURED)
        self._measure(frames[::every], metric)
        self._measure_in_time(video[::every])

    def load_fitted_tensors(self, tensors: Mapping[str, Any], source: str) -> None:
        """Take the tensors of another codec of the same sizes; those of older ones leave codes side by side.

        Raises:
            ValueError: The other codec has other sizes.
        """
        super().load_fitted_tensors({"mixing": torch.eye(self.temporal_compression_ratio), **tensors}, source)

    def _weights(self) -> Mapping[str, Tensor]:
        """Latents of codes side by side are those of codecs that could not mix, and so is what names them."""
        tensors = dict(super()._weights())
        if torch.equal(self.mixing, torch.eye(self.temporal_compression_ratio).to(self.mixing)):
            del tensors["mixing"]
        return tensors

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Encode pixels `[B, T, 3, H, W]` in [-1, 1] as latents `[B, F, C, H / p, W / p]`.

        Raises:
            ValueError: T is not 1 + r (F - 1), or a side is no multiple of the compression ratio.
        """
        self._require_fitted()
        self.require_video(video)
        chunks = video.flatten(0, 1).to(self.scale.dtype).split(_CHUNK)
        codes = torch.cat([(self.encoder(chunk - self.color) - self.mean) / self.scale for chunk in chunks])
        codes = codes.unflatten(0, video.shape[:2])
        ratio = self.temporal_compression_ratio
        codes = torch.cat([codes[:, :1].expand(-1, ratio - 1, -1, -1, -1), codes], dim=1)
        in_time = rearrange(codes, "b (f r) c h w -> b f r c h w", r=ratio)
        return _mixed(self.mixing, in_time).flatten(2, 3)

    def streaming_decoder(self) -> CodecStream:
        """Return a function that decodes a video block by block; each call takes the next latents of the same video."""
        self._require_fitted()
        return CodecStream(self._decode_next)

    @torch.no_grad()
    def _decode_next(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        started, parts = memory is not None, []
        unmixing = torch.linalg.inv(self.mixing.float()).to(self.scale.dtype)
        # Latent by latent: a convolution over another number of frames may round differently.
        for latent in latents.unbind(1):
            # Networks may compute in fewer bits, as under autocast; the codec has its own.
            in_time = latent.unflatten(1, (self.temporal_compression_ratio, -1)).to(self.scale.dtype)
            codes = _mixed(unmixing, in_time[:, None])[:, 0]
            codes = codes if started else codes[:, -1:]
            started = True
            pixels = self.decoder(codes.flatten(0, 1)) + self.color
            parts.append(pixels.unflatten(0, codes.shape[:2]))
        return torch.cat(parts, dim=1).clamp(-1, 1), {}

    @torch.no_grad()
    def _measure(self, frames: Tensor, metric: Tensor) -> None:
        """Set mean and scale of the codes by frames `[N, 3, H, W]`, and refuse a fit that has failed.

        Raises:
            RuntimeError: A single picture in place of all frames would have been as good.
        """
        raw = torch.cat([self.encoder(chunk - self.color) for chunk in frames.split(_CHUNK)])
        codes, mean, scale = _normalize(raw)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        decoded = torch.cat([self.decoder(chunk) + self.color for chunk in codes.split(_CHUNK)])
        error, of_mean = (_error(frames - guess, metric).item() for guess in (decoded, frames.mean(0)))
        if not error < of_mean and bool((frames != frames[0]).any()):
            self.scale.zero_()
            raise RuntimeError(
                f"the fit of the codec failed: its pictures have an error of {error:.3g}, and the mean of all frames "
                f"has one of {of_mean:.3g}. Fit for more steps, with a lower learning_rate or another seed"
            )

    @torch.no_grad()
    def _measure_in_time(self, video: Tensor) -> None:
        """Set how the codes of a latent frame are mixed, by videos `[B, T, 3, H, W]`; one frame says nothing."""
        self.mixing.copy_(torch.eye(self.temporal_compression_ratio))
        if video.shape[1] > 1:
            codes = self.encode(video)[:, 1:].unflatten(2, (self.temporal_compression_ratio, -1))
            self.mixing.copy_(_whitening(codes.movedim(2, 0).flatten(1), self.time_whitening))

    def _train(self, video: Tensor, metric: Tensor) -> None:
        """Train the network to give frames of `[B, T, 3, H, W]` back."""
        random = torch.Generator().manual_seed(self.seed)
        num_pairs = (self.batch_size + 1) // 2
        optimizer = AdamW(self.parameters(), self.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        schedule = LambdaLR(optimizer, self._learning_rate_factor)
        for _ in tqdm(range(self.num_steps), "fitting the codec", mininterval=5):
            sample, time = (torch.randint(size, (num_pairs,), generator=random) for size in video.shape[:2])
            later = (time + 1).clamp_max(video.shape[1] - 1)
            batch = torch.cat([video[sample, time], video[sample, later]]) - self.color
            # Noise that codes could outgrow would be no noise, and codes that it drowns would never be learned.
            codes, _, _ = _normalize(self.encoder(batch))
            noise = self.noise * torch.randn(codes.shape, generator=random)
            kept = torch.rand(len(codes), 1, *codes.shape[2:], generator=random) >= self.dropout
            before, after = codes.split(num_pairs)
            loss = _error(self.decoder((codes + noise) * kept) - batch, metric)
            loss = loss + self.change_weight * (after - before).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    def _learning_rate_factor(self, step: int) -> float:
        """Compute a linear rise over a tenth of the steps, times half a cosine over all."""
        rise = min(10 * (step + 1) / self.num_steps, 1)
        return rise * (1 + math.cos(math.pi * step / self.num_steps)) / 2


def _normalize(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bring codes `[N, C, h, w]` to a mean of 0 in each channel and a deviation of 1; return mean and scale as well."""
    mean = codes.mean((0, 2, 3), keepdim=True)
    # One scale for all channels: full whitening makes details as loud as positions.
    scale = (codes - mean).square().mean().sqrt().clamp_min(1e-6)
    return (codes - mean) / scale, mean[0], scale


def _mixed(mixing: Tensor, codes: Tensor) -> Tensor:
    """Mix codes `[B, F, r, C, h, w]` over r, value by value: a product of matrices may round, as under autocast."""
    return (mixing[:, :, None, None, None] * codes[:, :, None]).sum(3)


def _whitening(values: Tensor, share: float) -> Tensor:
    """Compute the matrix that whitens values `[r, N]` of mean 0 by a share, and leaves their mean square as it is."""
    moments = (values.double() @ values.double().T) / values.shape[1]
    if not moments.trace() > 0:
        return torch.eye(len(values))
    variance, directions = torch.linalg.eigh(moments)
    # Where nothing ever changes there is nothing to make louder.
    whitening = directions * variance.clamp_min(1e-6 * variance.max()).pow(-share / 2) @ directions.T
    return (whitening * (moments.trace() / (whitening @ moments @ whitening).trace()).sqrt()).float()


def _error(difference: Tensor, metric: Tensor) -> Tensor:
    """Compute the mean square of differences of colours `[N, 3, H, W]`."""
    return torch.einsum("nchw, cd, ndhw ->", difference, metric, difference) / difference[:, 0].numel()


def _colour_metric(frames: Tensor) -> Tensor:
    """Compute a power of the covariance of colours, `[3, 3]`, by which their mean square is 3."""
    colours = frames[:: math.ceil(len(frames) / _NUM_MEASURED)].movedim(1, -1).flatten(0, -2).double()
    # The diagonal is for colours that never vary.
    covariance = colours.T.cov() + 1e-5 * torch.eye(3, dtype=torch.float64)
    variance, directions = torch.linalg.eigh(covariance)
    metric = directions * variance.pow(-_WHITENING) @ directions.T
    return (3 * metric / torch.trace(metric @ covariance)).float()


def _encoder(code_dim: int, width: int, num_halvings: int) -> nn.Sequential:
    layers = [nn.PixelUnshuffle(_FOLD), _convolution(3 * _FOLD**2, width), _ResidualBlock(width)]
    for level in range(num_halvings):
        narrow, wide = width * min(level + 1, 2), 2 * width
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), _ResidualBlock(wide)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width * min(num_halvings + 1, 2), code_dim, 1))


def _decoder(code_dim: int, width: int, num_blocks: int, num_halvings: int) -> nn.Sequential:
    layers: list[nn.Module] = [_convolution(code_dim, width * min(num_halvings + 1, 2))]
    for level in range(num_halvings, 0, -1):
        narrow, wide = width * min(level, 2), 2 * width
        layers += [_ResidualBlock(wide) for _ in range(num_blocks)]
        layers += [_convolution(wide, 4 * narrow), nn.PixelShuffle(2)]
    layers += [_ResidualBlock(width) for _ in range(num_blocks)]
    pixels = _start_at_zero(_convolution(width, 3 * _FOLD**2))
    return nn.Sequential(*layers, nn.SiLU(), pixels, nn.PixelShuffle(_FOLD))


def _convolution(num_inputs: int, num_outputs: int) -> nn.Conv2d:
    return nn.Conv2d(num_inputs, num_outputs, 3, padding=1)


def _start_at_zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class _ResidualBlock(nn.Module):
    """A residual block without a norm, which starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, width), _start_at_zero(_convolution(width, width))

    def forward(self, frames: Tensor) -> Tensor:
        residual: Tensor = self.second(functional.silu(self.first(functional.silu(frames))))
        return frames + residual
