"""Encoders of speaker verification with weights that the tests make."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.test_voices import voice
from vall_e.config import parse_params
from vall_e.evaluation.speaker import SpeakerEncoder
from vall_e.evaluation.verification import RATE, SHORTEST, EncoderError, at_least, load_encoder

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": (8, 8), "conv_stride": (160, 2), "conv_kernel": (200, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "tdnn_dim": (8, 8), "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1), "xvector_output_dim": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    folder = tmp_path_factory.mktemp("wavlm")
    torch.manual_seed(0)
    WavLMForXVector(WavLMConfig(**SIZES)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_wavlm_equals_the_library_whatever_the_batch_the_rate_and_the_level(wavlm: Path) -> None:
    from transformers import AutoFeatureExtractor, WavLMForXVector

    encoder = load_encoder("wavlm-sv", str(wavlm), "cpu")
    clips = [voice(120, 700, 2.0), voice(200, 900, 2.5)]
    found = encoder.embed([(clip, RATE) for clip in clips])
    assert found.shape == (2, 12) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    model = WavLMForXVector.from_pretrained(wavlm).eval()
    inputs = AutoFeatureExtractor.from_pretrained(wavlm)(clips[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(**inputs).embeddings[0], dim=0).numpy()
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    np.testing.assert_allclose(encoder.embed([(0.1 * clips[1], RATE)])[0], found[1], atol=1e-4)
    assert np.isfinite(encoder.embed([(np.zeros(0, np.float32), 8_000), (clips[0][:800], RATE)])).all()
    assert encoder.embed([]).shape == (0, 12)


def test_weights_that_verify_nobody_are_refused(wavlm: Path, tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    WavLMModel(WavLMConfig(**SIZES)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="not trained to verify"):
        load_encoder("wavlm-sv", str(tmp_path), "cpu")
    with pytest.raises(EncoderError, match="score.speaker_weights .*nowhere"):
        load_encoder("wavlm-sv", str(tmp_path / "nowhere"), "cpu")


def test_the_bundled_encoder_is_the_default() -> None:
    settings = parse_params({}).score
    assert isinstance(load_encoder(settings.speaker_encoder, settings.speaker_weights, "cpu"), SpeakerEncoder)
    with pytest.raises(ValueError, match="in its wheel"):
        parse_params({"score": {"speaker_weights": "x"}})


@pytest.mark.skipif(find_spec("speechbrain") is not None, reason="speechbrain is installed")
def test_ecapa_without_its_package_says_what_to_install() -> None:
    with pytest.raises(EncoderError, match="pip install speechbrain"):
        load_encoder("ecapa", None, "cpu")


def test_ecapa_embeds_by_speechbrain(tmp_path: Path) -> None:
    pytest.importorskip("speechbrain", reason="ECAPA needs the package speechbrain, which is no dependency")
    (tmp_path / "hyperparams.yaml").write_text(
        f"""\
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 20
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 20
    channels: [16, 16, 16, 16, 48]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    res2net_scale: 4
    se_channels: 8
    lin_neurons: 12
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 12
    out_neurons: 3
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    collect_in: {tmp_path}
"""
    )
    encoder = load_encoder("ecapa", str(tmp_path), "cpu")
    found = encoder.embed([(voice(120, 700, 2.0), RATE), (voice(240, 900, 0.4, 8_000), 8_000)])
    assert found.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_short_clips_are_repeated_and_rates_are_changed() -> None:
    short = voice(120, 700, 0.5)
    filled = at_least(short, RATE)
    assert filled.size == SHORTEST
    np.testing.assert_array_equal(filled[8000:16000], filled[:8000])
    assert at_least(voice(120, 700, 2.0, 8_000), 8_000).size == 2 * RATE
