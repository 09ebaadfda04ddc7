"""The probe's own decisions; what it measures is not looked at."""

from __future__ import annotations

import json

import torch

from trainer.probes import device


def count(monkeypatch, long_seconds: float) -> int:
    monkeypatch.setattr(device, "_LONG_SECONDS", long_seconds)
    calls: list[None] = []
    assert device.best_seconds(lambda: calls.append(None), lambda: None) >= 0
    return len(calls)


def test_a_long_product_is_computed_once(monkeypatch):
    """On a busy machine four of them for each shape took longer than the launcher waits."""
    assert count(monkeypatch, long_seconds=0) == 1
    assert count(monkeypatch, long_seconds=1) > device._MIN_TRIES


def test_a_device_that_is_not_here_is_an_empty_answer(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    request = {"shapes": [[8, 8]], "tokens": 4, "device": "cuda", "precision": "bf16"}
    assert device.main([json.dumps(request)]) == 0
    assert json.loads(capsys.readouterr().out) == {}
    assert device.main([json.dumps({**request, "device": "cpu"})]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"flops_per_second", "bytes_per_second"}
