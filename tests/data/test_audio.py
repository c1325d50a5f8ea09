"""Sounds as log-mel spectra, and recordings in folders."""

import builtins
import wave

import numpy as np
import pytest

from ember_ml.data import open_source
from ember_ml.data.audio import log_mel, mel_filters, read_audio
from ember_ml.errors import DataError, MissingExtra

RATE = 8000


def tone(hertz, seconds=0.3):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)


def save(path, samples, rate=RATE, channels=1):
    with wave.open(str(path), "wb") as f:
        f.setnchannels(channels)
        f.setsampwidth(2)
        f.setframerate(rate)
        f.writeframes(np.round(np.repeat(samples, channels) * 32767).astype("<i2").tobytes())


def test_log_mel_is_its_formula():
    """One frame by the sum that defines the transform, one filter by its corners in Hz."""
    x = np.random.default_rng(0).normal(size=RATE // 10) * 0.1
    found = log_mel(x, RATE, bands=12)
    n, hop, points = 200, 80, 256
    assert found.shape == (1 + (800 - n) // hop, 12) and found.dtype == np.float32
    frame = x[3 * hop:3 * hop + n] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n))
    power = np.array([abs(np.sum(frame * np.exp(-2j * np.pi * k * np.arange(n) / points)))**2 for k in range(points // 2 + 1)])
    corner = lambda m: 700 * (10**(m * 2595 * np.log10(1 + 4000 / 700) / 13 / 2595) - 1)
    for band in (0, 5, 11):
        low, centre, high = (corner(band + j) for j in range(3))
        total = sum(p * max(0.0, min((f - low) / (centre - low), (high - f) / (high - centre)))
                    for p, f in zip(power, np.arange(points // 2 + 1) * RATE / points))
        assert found[3, band] == pytest.approx(np.log(1e-6 + total), rel=1e-5)


def test_a_higher_tone_is_in_a_higher_band():
    loudest = [int(log_mel(tone(f), RATE, 20).mean(0).argmax()) for f in (200, 600, 1200, 2400, 3500)]
    assert loudest == sorted(set(loudest))
    assert log_mel(tone(440)[:50], RATE, 20).shape == (1, 20)                     # shorter than a frame
    with pytest.raises(DataError, match="fewer bands than 200"):
        mel_filters(200, 256, RATE)


def test_recordings_in_folders(tmp_path):
    for name, hertz in (("low", 300), ("high", 2000)):
        (tmp_path / name).mkdir()
        for i in range(12):
            save(tmp_path / name / f"{i}.wav", tone(hertz + 5 * i, 0.2 + 0.02 * i), channels=1 + i % 2)
    source = open_source({"kind": "audio", "files": f"{tmp_path}/*/*.wav", "batch": 4, "rate": RATE, "bands": 16}, 0)
    assert source.class_names == ["high", "low"] and source.channels == 16
    x, lengths, y = source.batch(0)
    assert x.shape[0] == 4 and len(set(lengths.tolist())) > 1 and (x[0, lengths[0]:] == 0).all()
    assert source.baselines()["nearest neighbour"] == 1.0
    assert len(read_audio(tmp_path / "low" / "1.wav", RATE)) == int(0.22 * RATE)      # two channels become one


def test_refuses(tmp_path, monkeypatch):
    save(tmp_path / "x.wav", tone(300))
    assert np.abs(read_audio(tmp_path / "x.wav", RATE) - tone(300)).max() < 1e-4
    whole = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(whole[:-100])
    with pytest.raises(DataError, match="expected 2,400 samples as its header says, got 2,350; the file is cut short"):
        read_audio(tmp_path / "x.wav", RATE)
    save(tmp_path / "y.wav", np.zeros(0))
    with pytest.raises(DataError, match="the recording is empty"):
        read_audio(tmp_path / "y.wav", RATE)
    real = builtins.__import__

    def without(name, *args, **kw):
        if name in ("soundfile", "soxr"):
            raise ImportError(name)
        return real(name, *args, **kw)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "x.wav").write_bytes(whole)
    with pytest.raises(MissingExtra, match=r"has 8000 samples a second; .*ember-ml\[audio\].*or set rate = 8000"):
        read_audio(tmp_path / "x.wav", 16_000)
    (tmp_path / "x.ogg").write_bytes(b"OggS")
    with pytest.raises(MissingExtra, match="is no 16-bit WAV; .*soundfile"):
        read_audio(tmp_path / "x.ogg", RATE)
