"""What the training stage imports."""

from __future__ import annotations

import os
import subprocess
import sys

from launcher.paths import ROOT


def test_the_training_stage_imports_no_package_that_it_does_not_use(tmp_path):
    code = (
        "import sys, trainer.train, trainer.engines.torch.engine, transformers.trainer, transformers.generation;"
        "loaded = {'sklearn', 'scipy', 'datasets', 'mlflow', 'trl', 'tensorflow', 'matplotlib'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
