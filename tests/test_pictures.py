"""Models that read pictures in a text: their towers are read, calibrated and pruned as the rest is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architectures import ARCHITECTURES, PICTURE, inputs_of, main_output
from transformers import Qwen2VLImageProcessor

import dnge_compress as dnge
from dnge_compress.core.errors import DataError
from dnge_compress.graph.derivation.pictures import Pictures, pictures_of
from dnge_compress.graph.families import build_graph
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import calibration_inputs
from dnge_compress.signals.inference import call, first_examples
from dnge_compress.signals.joined import joined
from dnge_compress.signals.moments import gather_signals
from dnge_compress.signals.pieces import in_pieces

TOWERS = {
    "llava": "vision_tower",
    "paligemma": "vision_tower",
    "gemma3": "vision_tower",
    "smolvlm": "vision_model",
    "qwen2_vl": "visual",
    "qwen2_5_vl": "visual",
}
SETTINGS = Calibration(tokens=256, length=16)


@pytest.mark.parametrize(("name", "count"), [("llava", 16), ("gemma3", 4), ("smolvlm", 4), ("qwen2_5_vl", 16)])
def test_the_tokens_that_stand_for_a_picture_are_found(name: str, count: int) -> None:
    pictures = pictures_of(ARCHITECTURES[name].build())
    assert pictures is not None and pictures.tokens.count(PICTURE) == count


def test_a_model_without_pictures_in_its_text_has_none() -> None:
    assert pictures_of(ARCHITECTURES["clip"].build()) is None
    assert pictures_of(ARCHITECTURES["gemma2"].build()) is None


def test_patches_lie_as_the_processor_lays_them() -> None:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = Pictures(shape=(3, 32, 48), token=PICTURE, patch=8, frames=2, merged=2).passed(images)
    plain = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
    processor = Qwen2VLImageProcessor(patch_size=8, temporal_patch_size=2, merge_size=2)
    wanted = processor(images=list(images), return_tensors="pt", **plain)
    torch.testing.assert_close(found["pixel_values"], wanted["pixel_values"])
    assert found["image_grid_thw"].tolist() == wanted["image_grid_thw"].tolist()


@pytest.mark.parametrize("name", TOWERS)
def test_calibration_shows_pictures_and_every_consumer_is_reached(name: str) -> None:
    model = ARCHITECTURES[name].build()
    graph, batches = build_graph(model), calibration_inputs(model, SETTINGS)
    assert all("pixel_values" in batch for batch in batches)
    signals = gather_signals(model, graph, batches)
    read = {s.name: graph.consumers(s.name)[0].param for s in graph.of_kind("neuron")}
    # SigLIP's pooling head stands in these towers, and nothing reads it.
    towers = [s for s in graph.of_kind("neuron") if TOWERS[name] in read[s.name] and ".head." not in read[s.name]]
    assert len(towers) == 2
    assert all(signal.count > 0 and float(signal.fisher.sum()) > 0 for s in towers for signal in signals[s.name])


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("kind", ["neuron", "layer"])
def test_a_tower_alone_shrinks_and_the_whole_reloads_plainly(name: str, kind: str, tmp_path: Path) -> None:
    tiny = ARCHITECTURES[name]
    model, inputs = tiny.build(), inputs_of(tiny.inputs)
    options: dict[str, Any] = {"kinds": [kind], "of": "units", "tokens": 128, "length": 16, "compensate": "none"}
    small: Any = dnge.compress(model, ratio=0.4, within=TOWERS[name], scorer="obs", **options)
    before, after = dict(model.named_parameters()), dict(small.named_parameters())
    gone = {n for n, p in before.items() if n not in after or p.shape != after[n].shape}
    assert gone and all(f".{TOWERS[name]}." in n for n in gone) and not small.dnge.plan.uneven
    again = type(small).from_pretrained(dnge.save(small, tmp_path / "out"))
    with torch.no_grad():
        dense, cut, read = (main_output(m(**inputs)) for m in (model, small, again))
    torch.testing.assert_close(read, cut, rtol=1e-5, atol=1e-5)
    assert float((cut - dense).abs().max()) > 1e-3 * float(dense.abs().max())


def test_a_fisher_information_of_patches_is_that_of_their_pictures() -> None:
    """Of a mask on the unit, per picture, though the model reads all patches as one list."""
    model = ARCHITECTURES["qwen2_5_vl"].build()
    graph, batch = build_graph(model), calibration_inputs(model, SETTINGS)[0]
    space = next(s for s in graph.of_kind("neuron") if "visual" in graph.slots_of(s.name)[0].param)
    path = graph.consumers(space.name)[0].param.rpartition(".")[0]
    read: list[Any] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda m, args: read.append(args[0]))
    call(model, batch)
    hook.remove()
    pictures = len(batch["image_grid_thw"])  # type: ignore[call-overload]
    signal = gather_signals(model, graph, [first_examples([batch], 1)[0]])[space.name][0]
    assert pictures > 1 and signal.count == len(read[0]) // pictures
    # With one picture, Σ over patches is squared as a whole, as |Σ a·g| is.
    labels = len(first_examples([batch], 1)[0]["input_ids"][0])  # type: ignore[call-overload]
    torch.testing.assert_close((signal.fisher * labels).sqrt(), signal.taylor * labels)


def test_batches_of_patches_are_split_and_joined_by_their_pictures() -> None:
    model = ARCHITECTURES["qwen2_5_vl"].build()
    batch: Any = calibration_inputs(model, SETTINGS)[0]
    one: Any = first_examples([batch], 1)[0]
    patches = int(batch["image_grid_thw"][0].prod())
    assert len(batch["input_ids"]) > 1 and len(one["input_ids"]) == 1 and len(one["pixel_values"]) == patches
    twice = joined([one, one])
    with torch.no_grad():
        torch.testing.assert_close(call(model, twice)[:1], call(model, one), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(call(model, batch)[:1], call(model, one), rtol=1e-4, atol=1e-4)
    unknown = dict(batch) | {"image_grid_thw": batch["image_grid_thw"][:-1]}  # not one picture to a text
    assert len(first_examples([unknown], 1)[0]["pixel_values"]) == len(batch["pixel_values"])  # type: ignore[call-overload]


def test_batches_of_patches_come_in_pieces_that_the_model_reads() -> None:
    model = ARCHITECTURES["qwen2_5_vl"].build()
    batch: Any = calibration_inputs(model, SETTINGS)[0]
    pieces = in_pieces([batch], 1.0, 1)
    assert len(pieces) == len(batch["input_ids"]) > 1
    with torch.no_grad():
        torch.testing.assert_close(
            torch.cat([call(model, p) for p in pieces]), call(model, batch), rtol=1e-4, atol=1e-4
        )


def test_texts_alone_do_not_decide_over_a_tower() -> None:
    model = ARCHITECTURES["llava"].build()
    texts = [inputs_of("tokens")]
    quick: dict[str, Any] = {"ratio": 0.3, "kinds": ["neuron"], "scorer": "obs", "compensate": "none"}
    for part in ("", "vision_tower"):
        with pytest.raises(DataError, match=r"hold no pixel_values, and no text reaches 'model.vision_tower.*within"):
            dnge.plan(model, data=texts, within=part, **quick)
    dnge.plan(model, data=texts, within="language_model", **quick)
    dnge.plan(model, data=[inputs_of("llava")], **quick)


def test_a_tower_whose_hidden_states_are_read_may_lose_any_block() -> None:
    """LLaVA reads hidden states, which transformers collects by hooks of its own."""
    graph = build_graph(ARCHITECTURES["llava"].build())
    assert [s.protected for s in graph.of_kind("layer")] == [(), ()]
