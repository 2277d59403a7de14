"""From data to weights: `dnge pretrain` builds the zoo, measures true costs, and trains the encoder on them.

    dnge pretrain --zoo zoo --jobs 2 -o base.safetensors

Every stage can be killed and started again: finished networks, targets and training steps are not done twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnge_compress.core.progress import Progress, silent
from dnge_compress.encoder import DNGEncoder
from dnge_compress.zoo import build as zoo
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.engines import ONE_PROCESS, Engine
from dnge_compress.zoo.pretrain.fit import EVERYTHING, fit
from dnge_compress.zoo.pretrain.judging import compared
from dnge_compress.zoo.pretrain.targets import TrainingExample, examples_of, make_targets, read_example

STEPS = 1600
STATE = "training.pt"


def pretrain_encoder(
    zoo_folder: Path,
    data_root: DataRoot,
    *,
    steps: int = STEPS,
    seed: int = 0,
    engine: Engine = ONE_PROCESS,
    progress: Progress = silent,
) -> tuple[DNGEncoder, dict[str, Any]]:
    """The encoder that a zoo teaches, and how it was made. A state in the zoo's folder lets a killed training go on;
    once the encoder is saved, `forget_training` takes it away."""
    examples = measure_all(zoo_folder, data_root, engine, progress)
    state = zoo_folder / STATE
    encoder = fit(examples, [EVERYTHING], steps=steps, seed=seed, state=state, progress=progress)[EVERYTHING.name]
    judged = [x for x in examples if not EVERYTHING.learns(x)]
    return encoder, {
        "networks": len({x.name.partition("+")[0] for x in examples}),
        "examples": len(examples),
        "zoo_seed": seed,
        "steps": steps,
        "held_out": sorted({x.name for x in judged}),
        "spearman": compared(encoder, judged),
    }


def forget_training(zoo_folder: Path) -> None:
    """Take away what a killed training would go on from."""
    (zoo_folder / STATE).unlink(missing_ok=True)


def measure_all(
    folder: Path, data_root: DataRoot, engine: Engine = ONE_PROCESS, progress: Progress = silent
) -> list[TrainingExample]:
    """Targets for every network of the zoo, made where missing, and all examples read."""
    wanted = [(f, example) for f in zoo.finished(folder) if has_learned(f) for example in examples_of(f)]
    missing = [pair for pair in wanted if not (pair[0] / f"{pair[1]}.safetensors").is_file()]
    missing.sort(key=lambda pair: ("@" in pair[1], "+" in pair[1]))  # what teaches most comes first
    made = engine.each_done(make_targets, [(network, example, data_root) for network, example in missing])
    for done, path in enumerate(made, start=1):
        progress("measure targets", done, len(missing), path.stem)
    return [read_example(network, example, data_root) for network, example in wanted]


def has_learned(network: Path) -> bool:
    """Whether a language model is clearly below the unigram loss; one that isn't has nothing to teach."""
    quality = zoo.record(network)["quality"]
    return "unigram_loss" not in quality or quality["loss"] < 0.97 * quality["unigram_loss"]
