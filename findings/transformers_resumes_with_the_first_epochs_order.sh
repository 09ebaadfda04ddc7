#!/usr/bin/env bash
# transformers 5.24.0: a Trainer that goes on in the middle of a later epoch reads its data loader in the first epoch's order.
#
# The Trainer tells a data loader which epoch begins by calling its set_epoch. Until 4.57 it did so before it skipped the batches
# that had been trained on; since 5 it first puts a plain DataLoader around the batch sampler, in order to skip, and then looks for
# set_epoch on that one and on the sampler below. A loader from get_train_dataloader whose own set_epoch reseeds its sampler is no
# longer asked: the rest of that epoch has the rows of epoch 0, some of them for the second time, and others are left out. The next
# epoch is right again, and nothing is said. A set_epoch of the batch sampler itself is called by 5.
#
# Seen (two epochs of six rows, a checkpoint after step 8):
#   uninterrupted, from step 9 : [5, 0, 4, 1]
#   resumed, from step 9 :       [1, 0, 5, 3]
#   with transformers 4.57.6 both are [5, 0, 4, 1]
# Exit code 0: still so. 1: a resumed run reads the rows of an uninterrupted one, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 accelerate==1.15.0 torch==2.13.0
cat >"$work/resume.py" <<'PYTHON'
import random
import sys
import warnings

import torch
import transformers
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

warnings.simplefilter("ignore")
transformers.utils.logging.set_verbosity_error()
STEPS = 6


class Order(Sampler):
    epoch = 0

    def __len__(self):
        return STEPS

    def __iter__(self):
        rows = list(range(STEPS))
        random.Random(self.epoch).shuffle(rows)
        return iter([row] for row in rows)


class Loader(DataLoader):
    def set_epoch(self, epoch):
        self.batch_sampler.epoch = epoch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, row, labels=None):
        self.seen.append(int(row))
        return {"loss": (self.weight * row.float()).sum()}


class Shuffled(Trainer):
    def get_train_dataloader(self):
        return Loader(self.train_dataset, batch_sampler=Order())


def rows_of(resume):
    model = Model()
    arguments = TrainingArguments(
        output_dir="out", max_steps=2 * STEPS, per_device_train_batch_size=1, save_steps=STEPS + 2, report_to=[],
        disable_tqdm=True, use_cpu=True, remove_unused_columns=False, logging_strategy="no",
    )
    trainer = Shuffled(model=model, args=arguments, train_dataset=[{"row": row} for row in range(STEPS)])
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


print(f"transformers {transformers.__version__}")
whole = rows_of(None)
resumed = rows_of(f"out/checkpoint-{STEPS + 2}")
print("uninterrupted, from step", STEPS + 3, ":", whole[STEPS + 2 :])
print("resumed, from step", STEPS + 3, ":      ", resumed)
sys.exit(0 if transformers.__version__ == "5.24.0" and resumed != whole[STEPS + 2 :] else 1)
PYTHON
cd "$work"
venv/bin/python resume.py 2>/dev/null
