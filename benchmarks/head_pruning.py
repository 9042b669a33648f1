"""Head pruning as in HAP's language experiments: a pretrained encoder on SST-2, rankings against each other.

A six-layer encoder with real weights is fine-tuned on sentiment, then 40 and 60 % of its attention heads and hidden
neurons (or of its heads alone) go, chosen by a Hessian-based ranking, by gradients, by magnitude or at random. Accuracy
is that of the test set, as cut and after a short training. Seeds draw the sentences that a ranking reads, the probes,
and the order of training.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/head_pruning.py --data FOLDER      # with sst2_{train,dev,test}.tsv.xz

An interrupted run continues. Fine-tuning takes about six minutes on one core, a healing half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from heads.encoder import fine_tuned, pretrained
from heads.removal import KINDS, kept
from heads.report import table
from heads.text import Loader, chosen, read
from torch import Tensor

from secateur.api import apply, capture, heal, rank
from secateur.compress.heal.evaluate import evaluate
from secateur.compress.sensitivity.table import Sensitivity
from secateur.passes.program import Program

METHODS = ("gate-ggn", "taylor", "magnitude", "random", "hap")
WHAT = {"heads and neurons": list(KINDS), "heads": ["heads"]}


def main(arguments: list[str] | None = None) -> None:
    """Fine-tunes, ranks, cuts, heals and prints the table."""
    options = _options(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = pretrained() / "tokenizer.json"
    train, test = (read(options.data, split, tokenizer, options.longest) for split in ("train", "test"))
    if options.test_sentences:
        test = chosen(test, options.test_sentences, 0)
    weights = options.out / "dense.safetensors"
    model = fine_tuned(weights, Loader(train, shuffle=True), options.fine_tuning_epochs, 5e-5, _say)
    # Its 12 million numbers neither shrink nor need to move.
    model.get_submodule("bert.embeddings.word_embeddings").requires_grad_(False)
    inputs = next(iter(Loader(train, batch=4)))[0]
    program = capture(model, inputs, dynamic={name: [1] for name in inputs})
    held_out = Loader(test, batch=64)
    dense = _stored(options.out / "dense.json", lambda: {"accuracy": _accuracy(program, held_out)})["accuracy"]
    _say(f"dense {dense:.4f}")
    path = options.out / "results.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in range(options.seeds):
        for method in options.methods:
            for what in options.what:
                for removed in options.removed:
                    asked = {"method": method, "what": what, "removed": removed, "seed": seed}
                    if any(all(old[key] == value for key, value in asked.items()) for old in known):
                        continue
                    scores = _ranked(program, train, method, seed, options)
                    result = asked | _removed(program, scores, removed, WHAT[what], seed, train, held_out, options)
                    known.append(result)
                    with path.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                    (options.out / "table.md").write_text("\n".join(table(known, dense)) + "\n")
                    _say(str(result))
    print("\n".join(table(known, dense)))


def _ranked(program: Program, train: Any, method: str, seed: int, options: argparse.Namespace) -> Sensitivity:
    """The ranking from sentences of this seed; stored once it is made."""
    path = options.out / f"{method}.{seed}.safetensors"
    if not path.exists():
        began = time.monotonic()
        samples = min(options.samples, 128) if method == "hap" else options.samples
        loader = Loader(chosen(train, samples, seed), batch=32)
        rank(program, loader, _loss, method=method, seed=seed, samples=samples, probes=options.probes).save(path)
        _say(f"{method}, seed {seed}: ranked in {time.monotonic() - began:.0f} s")
    return Sensitivity.load(path)


def _removed(
    program: Program,
    scores: Sensitivity,
    removed: float,
    kinds: list[str],
    seed: int,
    train: Any,
    held_out: Loader,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Accuracy of the smaller network as cut and after healing."""
    smaller = apply(program, kept(program, scores, removed, kinds))
    before, after = (sum(p.numel() for p in _encoder(x)) for x in (program, smaller))
    result = {"params": after / before, "cut": _accuracy(smaller, held_out), "healed": None, "seconds": None}
    if options.steps:
        began = time.monotonic()
        healed = heal(
            smaller,
            Loader(train, shuffle=True, seed=seed),
            _loss,
            optimizer="adamw",
            lr=1e-4,
            weight_decay=0.01,
            warmup_epochs=0.05,
            clip_grad=1.0,
            channels_last=False,
            epochs=1.0,
            max_steps=options.steps,
            seed=seed,
        )
        result |= {"seconds": round(time.monotonic() - began, 1), "healed": _accuracy(healed, held_out)}
    return result


def _encoder(program: Program) -> list[Tensor]:
    """Parameters of the layers, without embeddings and classifier."""
    return [p for name, p in program.module().named_parameters() if ".layer." in name]


def _loss(output: Any, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(output["logits"], labels)


def _correct(output: Any, labels: Tensor) -> Tensor:
    return (output["logits"].argmax(1) == labels).float()


def _accuracy(program: Program, loader: Loader) -> float:
    return evaluate(program, loader, _correct).metric


def _stored(path: Path, make: Any) -> Any:
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("SECATEUR_DATA", "data")) / "text"
    parser.add_argument("--data", type=Path, default=default, help="folder with sst2_{train,dev,test}.tsv.xz")
    parser.add_argument("--out", type=Path, default=Path("runs/head_pruning"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--what", nargs="+", choices=list(WHAT), default=["heads and neurons"])
    parser.add_argument("--removed", nargs="+", type=float, default=[0.4, 0.6], help="shares of the units of a kind")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512, help="sentences that a ranking reads (hap: at most 128)")
    parser.add_argument("--probes", type=int, default=16, help="of hap")
    parser.add_argument("--steps", type=int, default=100, help="of healing, 32 sentences each; 0 heals nothing")
    parser.add_argument("--fine-tuning-epochs", type=int, default=2)
    parser.add_argument("--longest", type=int, default=64, help="tokens of a sentence")
    parser.add_argument("--test-sentences", type=int, help="so many at random instead of all 1,821")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
