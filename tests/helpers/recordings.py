"""A recording of noise, and a model with random weights, for tests of transcription."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from mt3data.music.vocabulary import VocabularyConfig, num_embeddings
from mt3train.model import MT3, ModelConfig
from mt3train.weights.checkpoint import CheckpointInfo, save_weights


def save_model(path: Path, vocabulary: VocabularyConfig) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_embeddings(vocabulary), 16, 2, 8, 1, 1, 16)
    save_weights(path, MT3(config), CheckpointInfo(model=config, vocabulary=vocabulary))
    return path


def record(path: Path, seconds: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).standard_normal(int(16000 * seconds)) * 0.1
    soundfile.write(path, samples, 16000)
    return path
