"""The text encoder of Wan: transformers' `UMT5EncoderModel`, each prompt encoded once."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_action.frozen.interfaces import TextEncoder, frozen_pass
from lightning_action.frozen.model_files import PartInFiles, wan_extra
from lightning_action.frozen.umt5_format import config_of, encoder_part, is_original, to_transformers_name
from lightning_action.ranges import require_numbers
from lightning_action.weights.fit import load_strictly
from lightning_action.weights.release import config_beside
from lightning_action.weights.tensor_files import LazyTensors, read_tensors

_TOKENIZER_FOLDERS = ("tokenizer", "google/umt5-xxl", ".", "../tokenizer")
# One must be there: from a folder without, transformers makes a tokenizer that knows no word. Byte tokenizers have none
# but `added_tokens.json`.
_VOCABULARIES = ("tokenizer.json", "spiece.model", "added_tokens.json")


class UMT5TextEncoder(PartInFiles, TextEncoder):
    """UMT5's encoder, as Wan uses it: prompts are cleaned, cut to `text_len` tokens, and zero past their end.

    UMT5 is by Chung et al. (2023, arXiv:2304.09151).

    It reads a folder of transformers and the original `models_t5_umt5-xxl-enc-bf16.pth`. Prompts that were encoded
    before are remembered in main memory, so that training on a set of captions runs the network once per caption.

    Args:
        path: File or folder of the weights, or the folder of a release that holds one; None looks in the folder that
            the environment variable `LIGHTNING_ACTION_WEIGHTS` names.
        tokenizer: Folder of the tokenizer; None looks beside the weights, in `tokenizer/` and `google/umt5-xxl/`.
        text_len: Largest number of tokens of a prompt; the rest is cut off.
        dtype: Precision of weights, computation and result.
        low_memory: Keep the weights in main memory, and move them to the device only while new prompts are encoded.
        num_remembered: Largest number of prompts remembered, of at most 4 MB each; those not asked for the longest are
            forgotten.

    Raises:
        ValueError: `text_len` is below 1, or `num_remembered` below 0.
    """

    release_names = ("text_encoder", "models_t5_umt5-xxl-enc-bf16.pth")

    def __init__(
        self,
        path: str | None = None,
        tokenizer: str | None = None,
        text_len: int = 512,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        low_memory: bool = False,
        num_remembered: int = 1024,
    ) -> None:
        require_numbers({"text_len": text_len}, 1, whole=True)
        require_numbers({"num_remembered": num_remembered}, 0, whole=True)
        super().__init__(path, dtype)
        self.tokenizer = tokenizer
        self.text_len = text_len
        self.low_memory = low_memory
        self.num_remembered = num_remembered
        self._tokenize: Any = None
        self._tokenizer_checksums: dict[str, str] = {}
        self._remembered: dict[str, Tensor] = {}

    @property
    def num_parameters_released(self) -> int:
        """Number of parameters of the encoder of umT5-XXL."""
        return 5_680_910_336

    @torch.inference_mode(False)
    def to(self, device: torch.device) -> None:
        """Encode on `device` from now on."""
        self._device = device
        if self._model is not None and not self.low_memory:
            self._model.to(device)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as `[B, L, text_dim]`, zero past each prompt's end; L is the length of the longest."""
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        distinct = dict.fromkeys(cleaned)
        self._remembered |= self._encode_new([prompt for prompt in distinct if prompt not in self._remembered])
        self._remembered |= {prompt: self._remembered.pop(prompt) for prompt in distinct}  # the latest stand last
        encoded = pad_sequence([self._remembered[prompt] for prompt in cleaned], batch_first=True)
        for prompt in list(self._remembered)[: max(0, len(self._remembered) - self.num_remembered)]:
            del self._remembered[prompt]
        return encoded.to(self._device)

    @torch.inference_mode(False)
    def _encode_new(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encode each prompt alone as `[tokens, text_dim]`, on the CPU: without padding no mask is needed either."""
        if not prompts:
            return {}
        self.load()
        self._model.to(self._device)
        encoded = {}
        with frozen_pass(self._device):
            for prompt in prompts:
                tokens = self._tokenize([prompt], truncation=True, max_length=self.text_len, return_tensors="pt")
                encoded[prompt] = self._model(tokens.input_ids.to(self._device)).last_hidden_state[0].cpu()
        if self.low_memory:
            self._model.to("cpu")
        return encoded

    def tokenizer_checksums(self) -> Mapping[str, str]:
        """Compute SHA-256 of each file of its tokenizer, as `load` found it."""
        self.load()
        return self._tokenizer_checksums

    def _read(self, path: Path) -> Any:
        beside = path if path.is_dir() else path.parent
        self._tokenize = _read_tokenizer(
            [beside / name for name in _TOKENIZER_FOLDERS] if self.tokenizer is None else [Path(self.tokenizer)]
        )
        folder = Path(self._tokenize.name_or_path)
        files = [folder / name for name in (*_VOCABULARIES, "tokenizer_config.json") if (folder / name).is_file()]
        self._tokenizer_checksums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        model = _read_model(path, self._dtype)
        if len(self._tokenize) > model.config.vocab_size:
            raise ValueError(
                f"the text encoder in {path} knows {model.config.vocab_size} tokens, the tokenizer has "
                f"{len(self._tokenize)}: give the tokenizer that belongs to it"
            )
        return model


def clean_prompt(prompt: str) -> str:
    """Mend the encoding, resolve HTML entities (twice, for those escaped twice), and leave single spaces."""
    with wan_extra():
        import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def _read_tokenizer(folders: Sequence[Path]) -> Any:
    """Load the tokenizer in the first of the folders that holds one."""
    with wan_extra():
        from transformers import AutoTokenizer

    found = next((folder for folder in folders if any((folder / name).is_file() for name in _VOCABULARIES)), None)
    if found is None:
        raise FileNotFoundError(
            f"no tokenizer in {', '.join(map(str, folders))}: expected {' or '.join(_VOCABULARIES[:2])}. Fetch the "
            "tokenizer of `google/umt5-xxl`, and give its folder as `tokenizer`"
        )
    try:
        return AutoTokenizer.from_pretrained(found, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers has no narrower one
        told = " ".join(str(error).split())
        if "trust_remote_code" in told:  # the setting that transformers advises to turn on
            raise ValueError(
                f"the tokenizer in {found} brings code of its own, which is not run: give the folder of another, such "
                "as that of `google/umt5-xxl`, as `tokenizer`"
            ) from error
        raise ValueError(f"the tokenizer in {found} cannot be read ({told}): is a file missing or damaged?") from error


def _read_model(path: Path, dtype: torch.dtype) -> Any:
    """Load the `UMT5EncoderModel` in a file or folder; its weights are never in memory twice."""
    with wan_extra():
        from transformers import UMT5Config, UMT5EncoderModel

    stored = encoder_part(read_tensors(path).entries, str(path))
    original = is_original(stored)
    entries = {to_transformers_name(name) if original else name: entry for name, entry in stored.items()}
    try:
        config = config_beside(path, "model_type", "umt5") or config_of(entries)
        entries["encoder.embed_tokens.weight"] = entries["shared.weight"]
    except KeyError as error:
        raise ValueError(f"{path} holds no UMT5 encoder: it has no tensor {error}") from error
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config.from_dict(config)).to(dtype)
    model.set_input_embeddings(model.shared)  # one module of both, lest it is loaded twice
    load_strictly(model, LazyTensors(entries), str(path))
    return model
