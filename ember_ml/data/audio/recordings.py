"""Sound files as sequences of log-mel spectra, for classification."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from ember_ml.data.audio.spectrum import log_mel
from ember_ml.data.features.arrays import ArraysConfig, ArraySource
from ember_ml.data.features.folders import labelled
from ember_ml.data.files import expand
from ember_ml.errors import DataError, MissingExtra
from ember_ml.registry import Rate, Size, config


@config
class AudioConfig:
    """Recordings in folders by class. WAV with 16 bits is read without any package; flac, ogg, mp3 and other rates by the extra `audio`.

    Args:
        files: pattern such as "clips/*/*.wav", or a list; the folder's name is the class.
        batch: recordings per update; those of about one length come together.
        rate: samples a second that every recording is brought to.
        bands: of the log-mel spectra. seconds: longer recordings are cut to this.
        held_out: share to judge on, by hash of the spectra.
    """

    files: str | list[str]
    batch: Size
    rate: Size = 16_000
    bands: Size = 40
    seconds: float = 10.0
    held_out: Rate = 0.2


def audio_source(c: AudioConfig, seed: int) -> ArraySource:
    """The source of a config; `class_names` are the folders. Raises ConfigError, DataError, MissingExtra."""
    paths = expand(c.files)
    names, classes = labelled(paths)
    spectra = [log_mel(read_audio(p, c.rate)[:max(1, int(c.seconds * c.rate))], c.rate, c.bands) for p in paths]
    lengths = np.array([len(s) for s in spectra], np.int32)
    x = np.zeros((len(spectra), int(lengths.max()), c.bands), np.float32)
    for row, spectrum in zip(x, spectra):
        row[:len(spectrum)] = spectrum
    source = ArraySource(ArraysConfig(batch=c.batch, held_out=c.held_out), seed, paths, {"x": x, "y": classes, "lengths": lengths})
    source.class_names = names
    return source


def read_audio(path: Path, rate: int) -> np.ndarray:
    """The samples of a sound file, float32 (N,) from -1 to 1 at `rate` a second; channels are averaged.

    Raises MissingExtra where soundfile or soxr is needed and not there, DataError for a file that is no sound, is cut short or empty.
    """
    samples, found = _wave(path) or _soundfile(path)
    if not len(samples):
        raise DataError(f"{path}: expected samples, the recording is empty")
    samples = samples.mean(1)
    if found != rate:
        try:
            import soxr
        except ImportError:
            raise MissingExtra(f'{path}: has {found} samples a second; to bring it to {rate} soxr is needed; run: pip install '
                               f'"ember-ml[audio]", or set rate = {found}') from None
        samples = soxr.resample(samples, found, rate)
    return samples.astype(np.float32)


def _wave(path: Path) -> tuple[np.ndarray, int] | None:
    """(samples (N, channels), rate) of a 16-bit WAV file; None for any other."""
    try:
        with wave.open(str(path)) as f:
            if f.getsampwidth() != 2:
                return None
            expected, channels, rate = f.getnframes(), f.getnchannels(), f.getframerate()
            raw = f.readframes(expected)
    except (wave.Error, EOFError):
        return None
    if len(raw) != 2 * channels * expected:
        raise DataError(f"{path}: expected {expected:,} samples as its header says, got {len(raw) // (2 * channels):,}; the file is cut "
                        "short")
    return np.frombuffer(raw, "<i2").reshape(-1, channels) / 32768.0, rate


def _soundfile(path: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError:
        raise MissingExtra(f'{path}: is no 16-bit WAV; other sound files are read by soundfile, which is not installed; run: pip install '
                           '"ember-ml[audio]"') from None
    try:
        return soundfile.read(path, always_2d=True)
    except soundfile.LibsndfileError as e:
        raise DataError(f"{path}: cannot be read as sound ({e})") from None
