"""What the recipe of a whole job may say: prune, place LoRA, train, merge, report.

Leaf names are those of the library they go to: `TrainingArguments` under `train`, `LoraConfig` under `lora`,
`load_dataset` under `datasets`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from dnge_compress.recipes.data_schema import Dataset
from dnge_compress.recipes.lora_schema import Lora
from dnge_compress.recipes.schema import LAST_SEED, Calibration, Prune, Real, RecipeSection, Repair, Whole, as_tuple

CAUSAL = ("ForCausalLM", "LMHeadModel")  # how the classes of causal language models end, which a job trains


class Train(RecipeSection):
    """How to train; names and meanings are those of `transformers.TrainingArguments`.

    `max_length` is tokens per row, longer rows are cut there (and counted); `packing` joins rows of type "text" and
    "sampled" into full ones. `warmup_steps` below 1 is a share of all steps. `max_steps` above 0 overrides the epochs.
    `learning_rate` "auto" is found by a few short trainings. `report_to` names trackers ("tensorboard", "wandb"), which
    see every training but those short ones.
    """

    max_length: Whole = Field(default=512, ge=2)
    packing: bool = True
    learning_rate: Annotated[Real, Field(gt=0)] | Literal["auto"] = "auto"
    num_train_epochs: Real = Field(default=1.0, gt=0)
    max_steps: Whole = Field(default=-1, ge=-1)
    per_device_train_batch_size: Whole = Field(default=8, ge=1)
    per_device_eval_batch_size: Whole = Field(default=8, ge=1)
    gradient_accumulation_steps: Whole = Field(default=1, ge=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: Real = Field(default=0.05, ge=0)
    weight_decay: Real = Field(default=0.0, ge=0)
    adam_beta1: Real = Field(default=0.9, ge=0, lt=1)
    adam_beta2: Real = Field(default=0.999, ge=0, lt=1)
    max_grad_norm: Real = Field(default=1.0, ge=0)
    optim: str = Field(default="adamw_torch", min_length=1)
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    logging_steps: Whole = Field(default=10, ge=1)
    eval_steps: Whole = Field(default=100, ge=1)
    save_steps: Whole = Field(default=100, ge=1)
    save_total_limit: Whole = Field(default=2, ge=2)
    dataloader_num_workers: Whole = Field(default=0, ge=0)
    use_cpu: bool = False
    report_to: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)] = ("none",)

    @model_validator(mode="after")
    def _trains(self) -> Train:
        if self.max_steps == 0:
            out = "write -1 for whole epochs, or leave out what trains (train, lora, distill)"
            raise ValueError(f"max_steps: 0 trains nothing; {out}")
        return self

    @model_validator(mode="after")
    def _one_of_each(self) -> Train:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 exclude each other")
        alone = next((name for name in ("none", "all") if name in self.report_to), None)
        if alone is not None and len(self.report_to) > 1:
            raise ValueError(f"report_to: '{alone}' stands alone; take it out, or the others")
        return self


class Distill(RecipeSection):
    """The model as it was before pruning teaches: loss = (1 − weight) · cross-entropy + weight · temperature² · KL.

    `teacher` is another model in its place, of the same tokens: a folder or Hugging Face id.
    """

    teacher: str = ""
    weight: Real = Field(default=1.0, ge=0, le=1)
    temperature: Real = Field(default=1.0, gt=0)

    @property
    def is_alone(self) -> bool:
        """Whether only the teacher's answers are learned, and of the rows nothing."""
        return self.weight == 1


class Vocabulary(RecipeSection):
    """Which tokens stay in the model that a job works with: those of the rows to train on and to judge by, as far as
    they are text that somebody gave, and those written in `scripts` ("Latin", "Cyrillic"); their number is rounded up
    to a multiple of `token_multiple`."""

    scripts: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    token_multiple: Whole = Field(default=1, ge=1)


class Save(RecipeSection):
    """What to leave behind besides the adapter: the merged model; a zero-padded uniform adapter."""

    merge_adapter: bool = True
    flat_adapter: bool = False


class Launch(RecipeSection):
    """How many processes train and how they share the work; obtained ones are checked against these."""

    num_processes: Whole = Field(default=1, ge=1)
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"

    @model_validator(mode="after")
    def _several_share(self) -> Launch:
        if self.strategy == "fsdp2" and self.num_processes == 1:
            raise ValueError("strategy 'fsdp2' shards a model over several processes; it needs num_processes above 1")
        return self


class Job(RecipeSection):
    """A whole job: a model, what to do with it, where to put the result.

    Sections that are absent are stages that don't happen: no `prune`, nothing is pruned; no `train`, nothing is
    trained. `scorer`, `calibration`, `repair` and `check` are those of a prune recipe; what is pruned is calibrated on
    the rows to train on, where they are real text, unless `calibrate_on` is "synthetic". Without `eval_datasets` a
    share `eval_fraction` of the rows is held out. `compare` names placers to train at the same budget beside the job's
    own. In several `rounds` what `prune.ratio` takes away goes in equal shares of what is left, and each is trained
    after; the last is this job's own, those before it lie in folders of their own.
    """

    recipe: Literal["job"] = "job"
    name: str = ""
    about: str = ""
    model_name_or_path: str = Field(default="", description="folder or Hugging Face id")
    output_dir: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: Whole = Field(default=42, ge=0, le=LAST_SEED)
    scorer: str = Field(default="encoder", min_length=1)
    calibration: Calibration = Calibration()
    calibrate_on: Literal["rows", "synthetic"] = "rows"
    rounds: Whole = Field(default=1, ge=1, le=20)
    vocabulary: Vocabulary | None = None
    prune: Prune | None = None
    repair: Repair = Repair()
    check: bool = True
    lora: Lora | None = None
    datasets: tuple[Dataset, ...] = ()
    eval_datasets: tuple[Dataset, ...] = ()
    eval_fraction: Real = Field(default=0.05, gt=0, lt=1)
    train: Train | None = None
    distill: Distill | None = None
    compare: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    save: Save = Save()
    launch: Launch = Launch()

    @property
    def has_real_rows(self) -> bool:
        """Whether any rows to train on are given, and not written by the model itself."""
        return any(source.type != "sampled" for source in self.datasets)

    @model_validator(mode="after")
    def _stages_fit(self) -> Job:
        if self.prune is None and self.lora is None and self.train is None:
            raise ValueError("there is nothing to do: give at least one of prune, lora, train")
        if self.datasets and self.train is None:
            raise ValueError("datasets are given, but no train section uses them")
        if self.distill is not None and self.train is None:
            raise ValueError("distill needs a train section")
        if self.vocabulary is not None and not (self.has_real_rows or self.vocabulary.scripts):
            raise ValueError("vocabulary keeps the tokens of texts; give datasets of real text, or vocabulary.scripts")
        if self.vocabulary is not None and self.distill is not None and self.distill.teacher:
            raise ValueError("distill.teacher reads tokens that vocabulary takes away; leave one of both out")
        if self.rounds > 1 and (self.prune is None or self.train is None):
            raise ValueError("rounds prune and train in turn; they need prune and train")
        if self.rounds > 1 and self.prune is not None and self.prune.target:
            raise ValueError(f"rounds share out prune.ratio; give that in the place of {self.prune.target}")
        if self.distill is not None and self.prune is None and self.distill.is_alone and not self.distill.teacher:
            raise ValueError(
                "distill teaches the model to be what it is, as nothing prunes it; give prune, or a weight below 1"
            )
        if len(set(self.compare)) < len(self.compare):
            raise ValueError("compare names a placer twice")
        if self.compare and (self.lora is None or self.train is None):
            raise ValueError("compare trains other placements; it needs lora and train")
        if self.lora is not None and self.lora.placer in self.compare:
            raise ValueError(f"compare names {self.lora.placer}, which lora.placer is already; name another, or none")
        return self

    @model_validator(mode="after")
    def _sections_are_used(self) -> Job:
        if self.train is None and (self.eval_datasets or self.launch.num_processes > 1):
            what = "eval_datasets" if self.eval_datasets else "launch.num_processes"
            raise ValueError(f"{what} is for a training, and there is no train section; give one, or leave it out")
        if self.lora is None and self.save != Save():
            raise ValueError("save says what becomes of an adapter, and there is no lora section; leave it out")
        return self
