"""Loads a checkpoint into a model: safetensors by default, and never a surprise."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .errors import UserError, did_you_mean


def load_checkpoint(model: nn.Module, path: str | Path, *, allow_pickle: bool = False) -> None:
    """Copies the weights of a file into `model`, in place; every name and shape must match.

    Floating tensors are cast to the model's own dtype (a checkpoint stored in half precision fits a float model).

    Args:
        model: The model.
        path: A `.safetensors` file, or a torch checkpoint if `allow_pickle`.
        allow_pickle: Reads torch checkpoints, with torch's weights-only unpickler.

    Raises:
        UserError: The file is missing, damaged, pickled, not finite, or does not fit the model.
    """
    path = Path(path)
    state = _read(path, allow_pickle)
    expected = model.state_dict()
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = [name for name in expected if name not in state and name not in optional]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        raise UserError(
            f"the checkpoint does not fit the model: {len(missing)} keys missing, {len(unknown)} unknown",
            where=str(path),
            why=_list("missing", missing, list(state))
            + ("; " if missing and unknown else "")
            + _list("unknown", unknown, []),
            hint="check model.factory and model.args: another shortcut, head or depth gives other names",
        )
    wrong = [n for n in state if state[n].shape != expected[n].shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{len(wrong)} tensors of the checkpoint have another shape than the model's",
            where=str(path),
            why=f"{name} is {list(state[name].shape)} in the file and {list(expected[name].shape)} in the model",
            hint="check model.args (width, depth, number of classes)",
        )
    broken = [n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise UserError(
            "the checkpoint holds NaN or infinity",
            where=f"{path}, tensor {broken[0]}",
            hint="take an earlier checkpoint",
        )
    model.load_state_dict({**{n: expected[n] for n in optional}, **state}, strict=True)


def _read(path: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError("there is no checkpoint here", where=str(path), hint="check model.checkpoint in the recipe")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(
                "the checkpoint is not a safetensors file",
                where=str(path),
                why=str(error),
                hint="save it again with safetensors",
            ) from None
    if not allow_pickle:
        raise UserError(
            "secateur does not load pickled checkpoints by itself",
            where=str(path),
            why="unpickling a file can run code",
            hint="convert it with safetensors.torch.save_file(state_dict, …), or set model.allow_pickle: true",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            "the checkpoint cannot be read",
            where=str(path),
            why="it is damaged, or holds more than tensors",
            hint="convert it with safetensors.torch.save_file(state_dict, …) where you trust it",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(
            "the checkpoint is not a state dict", where=str(path), hint="save model.state_dict() as safetensors"
        )
    prefix = "module."  # left by nn.DataParallel
    return {k.removeprefix(prefix): v for k, v in state.items()} if all(k.startswith(prefix) for k in state) else state


def _list(label: str, names: list[str], candidates: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{label}: {shown}" + (did_you_mean(names[0], candidates) if candidates else "")
