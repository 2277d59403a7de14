"""Recipes of jobs and placements: any depth, lists, overrides, hints, and paths that follow the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dnge_compress.core.errors import DngeError, RecipeError, UnknownNameError
from dnge_compress.recipes import library
from dnge_compress.recipes.explaining import familiar
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.keys import REMOVED, keys_at, leaves
from dnge_compress.recipes.library import assignments, load, resolve
from dnge_compress.recipes.lora_schema import LoraRecipe
from dnge_compress.recipes.schema import Recipe

JOB = "recipe: job\nmodel_name_or_path: tiny\noutput_dir: out\n"


def write(folder: Path, source: str) -> Path:
    """A recipe file."""
    path = folder / "mine.yaml"
    path.write_text(source, encoding="utf-8")
    return path


def error_of(recipe: Any, *told: str) -> str:
    """The message of the error that loading raises; always one line."""
    with pytest.raises(DngeError) as caught:
        load(recipe, assignments(told))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("train:\n  num_epochs: 3\n", ":5: unknown key 'train.num_epochs'; write train.num_train_epochs"),
        ("train:\n  warmup_ratio: 0.1\n", ":5: unknown key 'train.warmup_ratio'; transformers 5 has no such argument"),
        ("base_model: x\n", ":4: unknown key 'base_model'; write model_name_or_path"),
        ("lora: {lora_r: 8}\n", ":4: unknown key 'lora.lora_r'; write lora.budget.match_uniform_r"),
        ("lora: {budget: {match_uniform: 8}}\n", "unknown key 'lora.budget.match_uniform'; did you mean 'match_uni"),
        ("lora: {budget: {match_uniform_r: 8, trainable_params: 9}}\n", "'lora.budget' should name exactly one of"),
        ("datasets:\n  - path: a.txt\n  - path: b.txt\n    typ: text\n", ":7: unknown key 'datasets.1.typ'; did you"),
        ("datasets:\n  - type: sampled\n    path: a.txt\n", ":5: 'datasets.0' should have a path, unless type is"),
        ("datasets: [{path: a.jsonl, columns: {txt: body}}]\n", "columns: 'txt' is no column of type 'auto' (known: t"),
        ("train: {learning_rate: fast}\n", ":4: 'train.learning_rate' should be a number or auto, not 'fast'"),
        ("train: {learning_rate: Auto}\n", "should be a number or auto, not 'Auto'; did you mean 'auto'?"),
        ("lora: {init_lora_weights: Pissa}\n", "should be true, false or gaussian, olora, pissa or orthogonal, not 'P"),
        ("train: {bf16: true, fp16: true}\n", "'train' bf16 and fp16 exclude each other"),
        (
            "train: {max_steps: 0}\n",
            "'train' max_steps: 0 trains nothing; write -1 for whole epochs, or leave out what trains",
        ),
        ("train: {save_total_limit: 1}\n", "'train.save_total_limit' should be greater than or equal to 2, not 1"),
        ("prune: {ratio: 2}\n", ":4: ratio must be at least 0 and below 1, not 2"),
        ("launch: {strategy: fsdp}\nlora: {}\n", "'launch.strategy' should be 'auto', 'ddp' or 'fsdp2', not 'fsdp'"),
        ("", "there is nothing to do: give at least one of prune, lora, train"),
        ("distill: {}\nlora: {}\n", "distill needs a train section"),
        ("datasets: {path: x}\ntrain: {}\n", "'datasets' should be a valid list"),
    ],
)
def test_a_bad_job_names_file_line_key_and_the_way_out(tmp_path: Path, source: str, words: str) -> None:
    message = error_of(write(tmp_path, JOB + source))
    assert str(tmp_path) in message and words in message


def test_a_job_without_the_word_at_the_top_is_told_so(tmp_path: Path) -> None:
    assert "write recipe: job at the top" in error_of(write(tmp_path, "datasets: []\n"))


def test_an_unknown_kind_of_recipe_offers_the_nearest(tmp_path: Path) -> None:
    assert ":1: 'recipe' should be one of prune, lora, job, not 'jobs'; did you mean 'job'?" in error_of(
        write(tmp_path, "recipe: jobs\n")
    )


def test_a_recipe_for_another_verb_says_which_verb_it_is_for() -> None:
    with pytest.raises(RecipeError, match=r"is a job recipe, not a prune recipe; it is for `dnge run`"):
        resolve("jobs/prune-recover")
    with pytest.raises(RecipeError, match=r"is a prune recipe, not a lora recipe; it is for `dnge compress`"):
        resolve("prune/default", None, LoraRecipe)


def test_overrides_reach_any_depth_and_make_the_sections_they_need(tmp_path: Path) -> None:
    path = write(tmp_path, JOB + "lora: {}\n")
    told = ["prune.ratio=0.4", "datasets=[{path: a.jsonl}]", "datasets.0.type=messages", "train.learning_rate=1e-3"]
    job = load(path, assignments(told))
    assert isinstance(job, Job) and job.prune is not None and job.train is not None
    assert (job.prune.ratio, job.datasets[0].type, job.train.learning_rate) == (0.4, "messages", 1e-3)


def test_an_override_by_leaf_name_finds_its_only_place(tmp_path: Path) -> None:
    job = load(write(tmp_path, JOB + "lora: {}\n"), assignments(["ratio=0.3", "seed=7", "placer=uniform"]))
    assert isinstance(job, Job) and job.prune is not None and job.lora is not None
    assert (job.prune.ratio, job.seed, job.calibration.seed, job.lora.placer) == (0.3, 7, 0, "uniform")


def test_an_override_with_several_places_lists_them(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, JOB + "lora: {}\n"), "tokens=4096")
    assert (
        "'tokens' stands in several places; write calibration.tokens or datasets.0.tokens or eval_datasets.0.tokens"
        in message
    )


def test_null_and_a_tilde_take_a_section_away(tmp_path: Path) -> None:
    path = write(tmp_path, JOB + "lora: {}\nprune: {}\n")
    for word in ("prune=null", "~prune"):
        job = load(path, assignments([word]))
        assert isinstance(job, Job) and job.prune is None and job.lora is not None
    assert assignments(["~prune"]) == {"prune": REMOVED}


@pytest.mark.parametrize("word", ["ratio", "=3", "x: y"])
def test_a_word_that_assigns_nothing_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match="write KEY=VALUE"):
        assignments([word])


def test_a_list_position_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "there is no '3' in a list of 1" in error_of(
        write(tmp_path, JOB + "lora: {}\n"), "datasets=[{path: a.txt}]", "datasets.3.path=b.txt"
    )


def test_an_unknown_override_at_depth_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'train.learning_rat'; did you mean 'train.learning_rate'"):
        load(write(tmp_path, JOB + "lora: {}\n"), assignments(["train.learning_rat=1"]))


def test_a_wrong_override_is_blamed_on_itself_not_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, JOB + "prune: {ratio: 0.2}\n")
    assert error_of(path, "prune.round_to=0").startswith("override: 'prune.round_to' should be greater than")


def test_relative_paths_follow_the_file_and_hub_ids_stay(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    source = "recipe: job\nmodel_name_or_path: model\noutput_dir: out\nlora: {}\ntrain: {}\n"
    source += "datasets: [{path: rows.jsonl}, {path: owner/set}]\n"
    job = load(write(tmp_path, source))
    assert isinstance(job, Job)
    assert job.model_name_or_path == str(tmp_path / "model") and job.output_dir == str(tmp_path / "out")
    assert [s.path for s in job.datasets] == [str(tmp_path / "rows.jsonl"), "owner/set"]


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    job = load(write(tmp_path, JOB + "train: {learning_rate: 2e-4}\ndatasets: [{type: sampled}]\n"))
    assert isinstance(job, Job) and job.train is not None and job.train.learning_rate == 2e-4


@pytest.mark.parametrize("text", ["1e-4", "2026", "010", "1:30", "no", "2026-11-29", "1_000"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_text_that_looks_like_something_else_stays_text_where_text_is_wanted(
    tmp_path: Path, text: str, quote: str
) -> None:
    written = f"{quote}{text}{quote}"
    source = JOB.replace("output_dir: out", f"output_dir: {written}") + f"train: {{report_to: {written}}}\n"
    source += f"datasets: [{{path: {written}, columns: {{text: {written}}}}}]\nabout: {written}\n"
    path = write(tmp_path, source)
    told = assignments([f"name={written}", f"scorer={written}", f"calibration.prompts=[{written}]"])
    elsewhere = load("jobs/prune-recover", assignments(["model_name_or_path=m", f"output_dir={written}"]))
    assert isinstance(elsewhere, Job) and elsewhere.output_dir == text
    job = load(path, told)
    assert isinstance(job, Job) and job.train is not None and job.output_dir == str(tmp_path / text)
    assert {job.about, job.name, job.scorer, *job.calibration.prompts, *job.train.report_to} == {text}
    assert job.datasets[0].path == text and job.datasets[0].columns == {"text": text}


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("010", "8 or 10"),
        ("-017", "-15 or -17"),
        ("08", "text or 8"),
        ("0__10", "8 or 10"),
        ("1:30", "90 or as text"),
        ("0b11", "3 or as text"),
    ],
)
def test_a_number_that_programs_read_differently_is_refused(tmp_path: Path, text: str, readings: str) -> None:
    path = write(tmp_path, JOB + f"lora: {{}}\nseed: {text}\n")
    line = path.read_text(encoding="utf-8").count("\n")
    assert f"mine.yaml:{line}: 'seed' is {text}, which is read as {readings}; write it plainly" in error_of(path)
    override = error_of(write(tmp_path, JOB + "lora: {}\n"), f"calibration.seed={text}")
    assert override.startswith(f"override: 'calibration.seed' is {text}, which is read as {readings}")


@pytest.mark.parametrize(("text", "value"), [("00", 0), ("07", 7), ("0__7", 7), ("0_0", 0)])
def test_a_number_with_zeros_in_front_that_everybody_reads_alike_is_taken(
    tmp_path: Path, text: str, value: int
) -> None:
    job = load(write(tmp_path, JOB + f"lora: {{}}\nseed: {text}\n"), assignments([f"calibration.seed={text}"]))
    assert isinstance(job, Job) and job.seed == value == job.calibration.seed


@pytest.mark.parametrize("word", ["yes", "on", "true"])
def test_words_of_agreement_are_true_where_a_question_is_asked(tmp_path: Path, word: str) -> None:
    path = write(tmp_path, JOB + f"lora: {{}}\nsave: {{flat_adapter: {word}}}\n")
    job = load(path, assignments([f"save.merge_adapter={word}"]))
    assert isinstance(job, Job) and job.save.flat_adapter and job.save.merge_adapter


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["datasets=[{path: a, path: b}]"], "key 'datasets.0.path' stands twice"),
        (["train={learning_rate: 1, learning_rate: 2}"], "key 'train.learning_rate' stands twice"),
        (["seed=1", "seed=2"], "override 'seed' stands twice"),
        (["seed=1", "~seed"], "override 'seed' stands twice"),
        (["learning_rate=1", "train.learning_rate=2"], "override 'train.learning_rate' stands twice"),
        (["prompts=&a [*a]"], "aliases (*name) are not allowed"),
        (["prompts=" + "[" * 3000], "nested more than 32 deep"),
    ],
)
def test_an_override_that_stands_twice_is_refused_as_in_files(tmp_path: Path, words: list[str], complaint: str) -> None:
    path = write(tmp_path, JOB + "train: {}\ndatasets: [{type: sampled}]\n")
    with pytest.raises(RecipeError) as caught:
        load(path, assignments(words))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_resolved_job_survives_the_way_through_yaml(tmp_path: Path) -> None:
    job = load("jobs/prune-recover", assignments(["model_name_or_path=m", "output_dir=o"]))
    again = load(write(tmp_path, json.dumps(job.model_dump(mode="json"))))
    assert isinstance(again, Job)
    assert again.model_copy(update={"output_dir": "o"}) == job


def test_every_hint_names_a_key_that_exists_or_says_that_there_is_none() -> None:
    known = {".".join(p) for paths in leaves(Job).values() for p in paths} | set(keys_at(Job, ()))
    for hint in familiar().values():
        for word in hint.replace(",", " ").replace(":", " ").replace(";", " ").split():
            if "." in word and word.split(".")[0] in keys_at(Job, ()):
                assert word in known, hint


def test_no_hint_is_for_a_key_that_is_known_where_people_put_it() -> None:
    assert not set(familiar()) & {*keys_at(Job, ()), *keys_at(Job, ("train",)), *keys_at(Job, ("lora",))}


@pytest.mark.parametrize("kind", sorted(library.KINDS))
def test_the_json_schema_for_editors_knows_every_key_and_no_others(kind: str) -> None:
    section: Any = library.KINDS[kind]
    schema = section.model_json_schema()
    assert set(schema["properties"]) == set(section.model_fields)
    assert schema["additionalProperties"] is False
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values() if "properties" in part)


def test_shipped_recipes_are_of_the_kind_their_folder_says() -> None:
    kinds = {"prune": Recipe, "lora": LoraRecipe, "jobs": Job}
    names = library.names()
    assert {name.split("/")[0] for name in names} == kinds.keys()
    for name in names:
        assert isinstance(load(name), kinds[name.split("/")[0]]), name


@pytest.mark.parametrize("key", ["seed", "calibration.seed"])
def test_a_seed_that_no_generator_takes_is_refused(key: str, tmp_path: Path) -> None:
    path = write(tmp_path, JOB + "lora: {}\n")
    assert isinstance(load(path, assignments([f"{key}={2**32 - 1}"])), Job)
    assert "less than or equal to 4294967295" in error_of(path, f"{key}={2**32}")
