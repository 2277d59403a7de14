"""What trains and fits: `dnge zoo`, `dnge pretrain`, `dnge inr`. Each can be killed and started again."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from dnge_compress.cli.output import print_json
from dnge_compress.cli.progress_bars import session
from dnge_compress.core.document import Document, Facts, Section
from dnge_compress.core.terminal import show
from dnge_compress.encoder.hub import refuse_encoder_target
from dnge_compress.inr.sets import about, build_set, usual
from dnge_compress.zoo.build import RUNS, build_zoo, finished
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.engines import Engine
from dnge_compress.zoo.pretrain.train import STEPS, forget_training, pretrain_encoder


def zoo(options: Namespace) -> None:
    """`dnge zoo -o FOLDER`"""
    engine, data_root = _engine(options), DataRoot.find(options.data_folder, options.output / "cache")
    with session() as progress:
        build_zoo(options.output, options.runs or RUNS, options.seed, data_root, engine, progress)
    if options.json:
        print_json({"folder": str(options.output), "networks": len(finished(options.output))})


def pretrain(options: Namespace) -> None:
    """`dnge pretrain -o FILE.safetensors`"""
    refuse_encoder_target(options.output)  # now rather than after the training
    engine, data_root = _engine(options), DataRoot.find(options.data_folder, options.zoo / "cache")
    with session() as progress:
        build_zoo(options.zoo, options.runs or RUNS, options.seed, data_root, engine, progress)
        encoder, provenance = pretrain_encoder(
            options.zoo, data_root, steps=options.steps or STEPS, seed=options.seed, engine=engine, progress=progress
        )
        encoder.save_pretrained(options.output, provenance)
        forget_training(options.zoo)
    if options.json:
        print_json(provenance)
        return
    made = Facts((("networks", str(provenance["networks"])), ("steps", str(provenance["steps"]))))
    quality = Facts(tuple((name, f"{value:.3f}") for name, value in provenance["spearman"].items()))
    sections = (Section("Learned from", (made,)), Section("On held-out networks", (quality,)))
    show(Document(title=str(options.output), sections=sections))


def inr(options: Namespace) -> None:
    """`dnge inr DATA -o FILE.safetensors`"""
    given = {"steps": options.steps, "learning_rate": options.learning_rate, "base_width": options.base_width}
    settings = replace(usual(options.data), **{k: v for k, v in given.items() if v is not None})
    wanted = about(
        options.data,
        options.split,
        count=options.count,
        fits=options.fits,
        hidden=options.hidden,
        seed=options.seed,
        settings=settings,
    )
    data_root = DataRoot.find(options.data_folder)
    with session() as progress:
        made = build_set(wanted, options.output, data_root=data_root, jobs=options.jobs, progress=progress)
    psnr = round(float(made.psnr.mean()), 2)
    if options.json:
        print_json({"networks": len(made), "psnr": psnr, "file": str(options.output)})
    else:
        show(Document(title=str(options.output), facts=(f"{len(made):,} networks", f"{psnr} dB")))


def _engine(options: Namespace) -> Engine:
    return Engine(options.engine, options.jobs)
