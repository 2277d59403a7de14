"""From data to weights: `dnge pretrain` builds the zoo, measures true costs, and trains the encoder on them.

    dnge pretrain --zoo zoo --runs 200 --jobs 2 --out base.safetensors

Every stage can be killed and started again: finished networks, targets and training steps are not done twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dnge_compress.core.errors import DngeError
from dnge_compress.zoo import build as zoo
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.pretrain.fit import fit, folds
from dnge_compress.zoo.pretrain.judging import compared
from dnge_compress.zoo.pretrain.targets import TrainingExample, examples_of, make_targets, read_example
from dnge_compress.zoo.workers import each_done

STEPS = 1600


def main(arguments: Sequence[str] | None = None) -> int:
    """Make encoder weights; 0 when they are written, 2 on wrong data or folders."""
    parser = argparse.ArgumentParser(prog="dnge pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="folder of the networks")
    parser.add_argument("--runs", type=zoo.positive, default=zoo.RUNS, help="training runs; each gives 3 networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=zoo.positive, default=1, help="processes, one thread each")
    parser.add_argument("--steps", type=zoo.positive, default=STEPS, help="examples that the encoder takes")
    parser.add_argument("--data", type=Path, help="folder of the data sets (else DNGE_DATA, ../shared/data)")
    parser.add_argument("--out", type=Path, default=Path("base.safetensors"), help="where the encoder's weights go")
    options = parser.parse_args(arguments)
    try:
        data_root = DataRoot.find(options.data, options.zoo / "cache")
        made = zoo.main(_zoo_arguments(options))
        if made:
            return made
        examples = measure_all(options.zoo, data_root, options.jobs)
        part, state = folds()[0], options.zoo / "training.pt"
        encoder = fit(examples, [part], steps=options.steps, seed=options.seed, state=state)[part.name]
        judged = [x for x in examples if not part.learns(x)]
        provenance = {
            "networks": len({x.name.partition("+")[0] for x in examples}),
            "examples": len(examples),
            "zoo_seed": options.seed,
            "steps": options.steps,
            "held_out": sorted({x.name for x in judged}),
            "spearman": compared(encoder, judged),
        }
        encoder.save_pretrained(options.out, provenance)
        state.unlink(missing_ok=True)
        print(json.dumps(provenance, indent=1))
    except DngeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure_all(folder: Path, data_root: DataRoot, jobs: int) -> list[TrainingExample]:
    """Targets for every network of the zoo, made where missing, and all examples read."""
    wanted = [(f, example) for f in zoo.finished(folder) if has_learned(f) for example in examples_of(f)]
    missing = [pair for pair in wanted if not (pair[0] / f"{pair[1]}.safetensors").is_file()]
    missing.sort(key=lambda pair: ("@" in pair[1], "+" in pair[1]))  # what teaches most comes first
    made = each_done(jobs, make_targets, [(network, example, data_root) for network, example in missing])
    for done, path in enumerate(made, start=1):
        print(f"[{done}/{len(missing)}] targets {path.stem}", file=sys.stderr, flush=True)
    return [read_example(network, example, data_root) for network, example in wanted]


def has_learned(network: Path) -> bool:
    """Whether a language model is clearly below the unigram loss; one that isn't has nothing to teach."""
    quality = zoo.record(network)["quality"]
    return "unigram_loss" not in quality or quality["loss"] < 0.97 * quality["unigram_loss"]


def _zoo_arguments(options: argparse.Namespace) -> list[str]:
    arguments = ["--out", str(options.zoo), "--runs", str(options.runs), "--seed", str(options.seed)]
    arguments += ["--jobs", str(options.jobs)]
    return arguments + (["--data", str(options.data)] if options.data else [])


if __name__ == "__main__":
    sys.exit(main())
