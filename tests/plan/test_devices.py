"""Planning for a device that this machine has, or has not."""

from __future__ import annotations

from dataclasses import replace

import torch

from launcher.app import main
from launcher.config.schema import CalibrationConfig
from launcher.plan.build import make
from tests.launcher.conftest import single

CALIBRATION = CalibrationConfig("of nothing", 1.0, 1.0, 1.0, 1.0, 0.5, 2.0)
# The size of its data is known without looking at them.
SIZED = ("experiment=tiny", "dataset=dolly15k")


def test_a_gpu_that_is_not_here_is_no_failure(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([*SIZED, "accelerator=cuda", "plan=true"]) == 0
    assert capfd.readouterr().err == ""
    config = single(*SIZED, "accelerator=cuda").config  # has no calibration yet: nothing asked for the device
    calibrated = replace(config, accelerator=replace(config.accelerator, calibration=CALIBRATION))
    assert (make(calibrated).duration is None) == (not torch.cuda.is_available())
    assert capfd.readouterr().err == ""
