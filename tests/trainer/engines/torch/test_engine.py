"""What the torch engine refuses before it loads anything."""

from __future__ import annotations

import pytest
import torch

from launcher.errors import TrntuneError
from tests.launcher.conftest import single
from trainer.engines.torch.engine import create


def test_a_device_without_bf16_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old one")
    with pytest.raises(TrntuneError, match=r"precision=bf16: an old one has no bf16"):
        create(single("accelerator=cuda", "training.precision=bf16").config)
