"""Audio: recordings as sequences of spectra."""

from ember_ml.data.audio.recordings import AudioConfig, audio_source, read_audio
from ember_ml.data.audio.spectrum import log_mel, mel_filters

__all__ = ["AudioConfig", "audio_source", "log_mel", "mel_filters", "read_audio"]
