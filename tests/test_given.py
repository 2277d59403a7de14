"""Data as users have them in Python: data sets, rows, tokens, images, and loaders with labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from models import make
from torch.utils.data import DataLoader, TensorDataset

from dnge_compress import compress, plan
from dnge_compress.checkpoint import open_model
from dnge_compress.core.errors import DataError
from dnge_compress.data.given import given_data
from dnge_compress.data.texts import read_texts
from dnge_compress.recipes.schema import Calibration

BOOKWORM = Path(__file__).resolve().parents[1] / "examples" / "bookworm"
TEXT = "The old man looked at the sea, and the sea looked back at him. " * 3
ROWS = [{"text": f"{i} {TEXT}", "number": i} for i in range(12)]
SMALL = Calibration(tokens=4096, length=32)


@pytest.fixture(scope="module")
def model() -> Any:
    return open_model(BOOKWORM)


def rows_of(data: Any) -> list[list[int]]:
    """The rows of all batches without padding, in the order of their tokens."""
    pairs = [pair for batch in data for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return sorted(ids[mask.bool()].tolist() for ids, mask in pairs)


@pytest.fixture(scope="module")
def wanted(model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What the command line reads of the same texts in a file."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    datasets.Dataset.from_list(ROWS).to_json(file)
    found = rows_of(read_texts(file, model, SMALL))
    assert len(found) == 12 and len({tuple(ids) for ids in found}) == 12
    return found


GIVEN: dict[str, Callable[[], Any]] = {
    "data set": lambda: datasets.Dataset.from_list(ROWS),
    "streamed data set": lambda: datasets.IterableDataset.from_generator(lambda: iter(ROWS)),
    "list of dicts": lambda: ROWS,
    "generator": lambda: (row for row in ROWS),
    "list of texts": lambda: [row["text"] for row in ROWS],
    "loader of rows": lambda: DataLoader(datasets.Dataset.from_list(ROWS), batch_size=5),
    "answers": lambda: [{"prompt": row["text"][:9], "completion": row["text"][9:]} for row in ROWS],
}


@pytest.mark.parametrize("name", GIVEN)
def test_rows_are_read_as_files_of_them(name: str, model: Any, wanted: list[list[int]]) -> None:
    assert rows_of(given_data(GIVEN[name](), model, SMALL)) == wanted


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_tokenised_rows_are_taken_without_their_padding(form: str | None, model: Any, wanted: list[list[int]]) -> None:
    longest = max(map(len, wanted))
    padded = [ids + [0] * (longest + 3 - len(ids)) for ids in wanted]
    masks = [[int(i < len(ids)) for i in range(longest + 3)] for ids in wanted]
    found = datasets.Dataset.from_dict({"input_ids": padded, "attention_mask": masks, "id": list(range(12))})
    assert rows_of(given_data(found.with_format(form) if form else found, model, SMALL)) == wanted


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_rows_without_tokens_are_left_out(form: str | None, first: bool, model: Any, wanted: list[list[int]]) -> None:
    rows = [[], *wanted] if first else [*wanted, []]
    found = given_data(datasets.Dataset.from_dict({"input_ids": rows}).with_format(form), model, SMALL)
    assert rows_of(found) == wanted and "; 1 row without text left out" in found.notes[0]


def test_a_text_that_is_missing_is_left_out(model: Any, wanted: list[list[int]]) -> None:
    found = given_data([*(row["text"] for row in ROWS), None], model, SMALL)
    assert rows_of(found) == wanted and "; 1 row without text left out" in found.notes[0]


def test_images_in_bfloat16_are_taken_as_rows_and_as_batches() -> None:
    model = make("vit").bfloat16()
    side = model.config.image_size
    image = torch.rand(model.config.num_channels, side, side, dtype=torch.bfloat16)
    for given in ([{"pixel_values": image}] * 4, [{"pixel_values": image[None].repeat(4, 1, 1, 1)}]):
        assert given_data(given, model, SMALL)[0]["pixel_values"].shape == (4, *image.shape)


def test_rows_of_images_are_read_in_the_models_own_precision() -> None:
    model = make("resnet_basic").bfloat16()
    images = [{"pixel_values": torch.rand(model.config.num_channels, 32, 32, dtype=torch.bfloat16)}] * 2
    assert given_data(images, model, SMALL)[0]["pixel_values"].dtype == torch.bfloat16


def test_a_file_is_taken_by_its_path(model: Any, wanted: list[list[int]], tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    for given in (tmp_path / "rows.parquet", str(tmp_path / "rows.parquet")):
        assert rows_of(given_data(given, model, SMALL)) == wanted


def test_the_plan_says_what_was_read(model: Any) -> None:
    rows = [{"instruction": "Say it.", "input": "", "output": row["text"]} for row in ROWS]
    made = plan(model, "prune/neurons", ratio=0.2, scorer="magnitude", compensate="none", data=rows, tokens=4096)
    assert any(note.startswith("calibrated on 12 rows of 'data' with ") for note in made.notes)
    assert "'data' is read as alpaca (instruction, output, input)" in made.notes


def test_of_many_rows_as_many_are_taken_as_the_recipe_asks_for(model: Any) -> None:
    found = given_data(datasets.Dataset.from_list(ROWS * 20), model, Calibration(tokens=256, length=32))
    assert 256 <= sum(map(len, rows_of(found))) <= 320 and "of 240 rows, spread evenly" in found.notes[0]


def test_images_of_a_data_set_are_put_into_batches() -> None:
    pictures = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = datasets.Dataset.from_dict({"pixel_values": pictures.numpy()}).with_format("torch")
    found = given_data(rows, make("resnet_basic"), SMALL)
    assert torch.allclose(torch.cat([batch["pixel_values"] for batch in found]), pictures)


def test_a_loaders_labels_are_left_out_and_that_is_said() -> None:
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images, torch.arange(12) % 5), batch_size=4)
    cnn = make("cnn")
    small: Any = compress(cnn, ratio=0.2, scorer="obs", data=loader, example_inputs=images[:1])
    plain: Any = compress(cnn, ratio=0.2, scorer="obs", data=list(images.split(4)), example_inputs=images[:1])
    assert all(torch.equal(p, q) for p, q in zip(small.parameters(), plain.parameters(), strict=True))
    assert any("labels of the data's batches are left out" in note for note in small.dnge.plan.notes)


def test_a_second_input_that_the_model_asks_for_is_no_label() -> None:
    class Timed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(9, 13), torch.nn.Linear(13, 4)

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu() + time[:, None])

    found = given_data([(torch.rand(3, 9), torch.arange(3))], Timed(), SMALL)
    assert len(found[0]) == 2 and found.notes == ()


def test_labels_of_a_dict_stay_where_the_model_takes_them() -> None:
    class Plain(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input)

    batch = {"input": torch.rand(2, 9), "labels": torch.arange(2)}
    assert set(given_data([batch], Plain(9, 4), SMALL)[0]) == {"input"}
    ids = torch.arange(8).reshape(2, 4)
    assert set(given_data([{"input_ids": ids, "labels": ids}], make("bert_mlm"), SMALL)[0]) == {"input_ids", "labels"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
            r"several splits \(train\); .* data\['train'\]",
        ),
        ("", "--data is empty; name a file"),
        (pandas.DataFrame(ROWS), r"data\.to_dict\('records'\)"),
        ([TEXT, float("nan")], "data row 2: column 'text' holds a number, not text"),
        ([{"prompt": [TEXT, TEXT], "completion": [TEXT]}], "prompt, completion in unequal numbers"),
        ([{"body": "x"}], "data row 1 has body; rows need text"),
        ([{"text": "x"}, {"text": 3}], "data row 2: column 'text' holds a number"),
        ([{"text": "x"}], "the data 'data' hold .* needs at least 64"),
        ([{"input_ids": [1, 2]}, {"text": "x"}], "data row 2 holds no input_ids"),
        (
            [{"input_ids": [1, 2]}, {"input_ids": [1, 2], "attention_mask": [1]}],
            r"data row 2 has input_ids of \[2\] and attention_mask of \[1\]; make them equal",
        ),
        (
            [{"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 5, dtype=torch.long)}],
            r"data batch 0 has input_ids of \[2, 8\] and attention_mask of \[2, 5\]; make rows",
        ),
        (
            [{"inputs_embeds": torch.rand(2, 8, 4), "attention_mask": torch.ones(2, 5, dtype=torch.long)}],
            r"data batch 0 has inputs_embeds of \[2, 8, 4\] and attention_mask of \[2, 5\]; make rows",
        ),
        (
            [{"decoder_inputs_embeds": torch.rand(2, 8, 4), "decoder_attention_mask": torch.ones(2, 5)}],
            r"data batch 0 has decoder_inputs_embeds of \[2, 8, 4\] and decoder_attention_mask of \[2, 5\]; ",
        ),
        (
            [{"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(8, dtype=torch.long)}],
            r"data batch 0 has attention_mask of \[8\]; give rows of equal length, as in attention_mask\[None\]",
        ),
        (
            [{"input_ids": torch.ones(0, 8, dtype=torch.long)}],
            r"data batch 0 is empty: input_ids is of \[0, 8\]; leave it out",
        ),
        ([{"input_ids": torch.ones(1, 4, dtype=torch.long)}, {}], "data batch 1 is empty: it holds no tensors; leave"),
        ([torch.ones(1, 4, dtype=torch.long), ()], "data batch 1 is empty: it holds no tensors; leave it out"),
        (
            [{"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.full((1, 1, 4, 4), -torch.inf)}],
            r"infinite values in attention_mask; write torch\.finfo\(dtype\)\.min for -inf",
        ),
    ],
)
def test_rows_that_are_none_are_refused_in_one_line(given: Any, words: str, model: Any) -> None:
    with pytest.raises(DataError, match=words) as caught:
        given_data(given, model, SMALL)
    assert "\n" not in str(caught.value)
