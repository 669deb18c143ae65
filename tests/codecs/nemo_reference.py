"""What NeMo's own codec classes make of drawn weights and a drawn wave: the oracle of ``test_nemo.py``.

NeMo needs more packages than this project, so it is not in its environment. Where NeMo is (2.x or 3.x),
``PYTHONPATH=. python -m tests.codecs.nemo_reference tests/codecs/nemo.npz`` makes the reference again; the
one that is kept is of nemo_toolkit 3.0.0. It holds names and shapes of the checkpoint, the buffers that are not drawn,
codes and waves.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

_MODULES = "nemo.collections.tts.modules.audio_codec_modules"
_DECODER = {
    "_target_": f"{_MODULES}.HiFiGANDecoder", "input_dim": 12, "base_channels": 16, "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [1, 2],
}  # fmt: skip
_SCALARS = {
    "_target_": f"{_MODULES}.GroupFiniteScalarQuantizer", "num_groups": 3, "num_levels_per_group": [8, 5, 5, 5],
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "audio": {
        "sample_rate": 16_000, "samples_per_frame": 40,
        "audio_encoder": {
            "_target_": f"{_MODULES}.HiFiGANEncoder", "down_sample_rates": [2, 4, 5], "encoded_dim": 12,
            "base_channels": 2, "activation": "lrelu", "resblock_kernel_sizes": [3, 5],
            "resblock_dilation_sizes": [1, 2],
        },
        "audio_decoder": _DECODER | {
            "up_sample_rates": [5, 4, 2], "activation": "half_snake", "output_activation": "clamp",
        },
        "vector_quantizer": _SCALARS,
    },
    "mel": {
        "sample_rate": 16_000, "samples_per_frame": 40,
        "audio_encoder": {
            "_target_": f"{_MODULES}.MultiBandMelEncoder", "mel_bands": [[0, 3], [3, 6], [6, 10]], "out_channels": 4,
            "hidden_channels": 6, "filters": 8, "num_layers": 2,
            "mel_processor": {
                "_target_": f"{_MODULES}.MelSpectrogramProcessor", "mel_dim": 10, "sample_rate": 16_000,
                "win_length": 160, "hop_length": 40,
            },
        },
        "audio_decoder": _DECODER | {"up_sample_rates": [5, 4, 2]},
        "vector_quantizer": _SCALARS,
    },
}  # fmt: skip


def wave(frames: int = 60) -> torch.Tensor:
    """Noise whose loudness moves, float [2, 1, frames * 40 - 7]."""
    length = frames * 40 - 7
    noise = np.random.default_rng(7).standard_normal((2, 1, length)).astype(np.float32)
    return torch.from_numpy(0.3 * np.abs(np.sin(np.arange(length, dtype=np.float32) / 300)) * noise)


def drawn(names: list[str], shapes: list[list[int]], kept: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A state dict: ``kept`` as it is, all else drawn by its place among ``names``."""
    state = {}
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        values = np.random.default_rng([3, index]).standard_normal(shape).astype(np.float32)
        if name.endswith(("original0", "alpha")):  # lengths of kernels, and Snake's frequencies
            values = (1.8 if "encoder" in name else 0.8) + 0.3 * np.abs(values)
        elif name.endswith("bias"):
            values *= 0.2
        state[name] = torch.from_numpy(kept.get(name, values))
    return state


def write_nemo(path: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
    """A ``.nemo`` file as ``ModelPT.save_to`` writes it: a tar of two files."""
    weights = io.BytesIO()
    torch.save(state, weights)
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("./model_config.yaml", yaml.safe_dump(config).encode()),
            ("./model_weights.ckpt", weights.getvalue()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _reference(config: dict[str, Any]) -> dict[str, np.ndarray]:
    from nemo.collections.tts.models.audio_codec import AudioCodecModel
    from omegaconf import OmegaConf

    losses = "nemo.collections.tts.losses.audio_codec_loss"
    training = {
        "loss_resolutions": [[64, 16, 64]], "mel_loss_dims": [8], "commit_loss_scale": 0.0,
        "generator_loss": {"_target_": f"{losses}.GeneratorSquaredLoss"},
        "discriminator_loss": {"_target_": f"{losses}.DiscriminatorSquaredLoss"},
    }  # fmt: skip
    model = AudioCodecModel(OmegaConf.create(config | training)).eval()
    own = {name: value for name, value in model.state_dict().items() if name.startswith(("audio_", "vector_"))}
    kept = {name: v.numpy() for name, v in own.items() if name.startswith("vector_") or "featurizer" in name}
    names, shapes = list(own), [list(value.shape) for value in own.values()]
    missing = model.load_state_dict(drawn(names, shapes, kept), strict=False)
    assert missing is None or not missing.unexpected_keys
    sound = wave()[:, 0]
    length = torch.full((len(sound),), sound.shape[1])
    with torch.no_grad():
        codes, frames = model.encode(audio=sound, audio_len=length)
        decoded, _ = model.decode(tokens=codes, tokens_len=frames)
    facts = json.dumps({"names": names, "shapes": shapes})
    out = {"facts": np.array(facts), "codes": codes.numpy().astype(np.int16), "frames": frames.numpy()}
    return out | {"wav": decoded.numpy()} | {f"kept.{name}": value for name, value in kept.items()}


if __name__ == "__main__":
    arrays = {f"{n}/{k}": v for n, config in CONFIGS.items() for k, v in _reference(config).items()}
    np.savez_compressed(sys.argv[1], **arrays)
