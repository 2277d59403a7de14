"""ONNX: what was pruned, saved and plainly reloaded is exported by torch and runs in onnxruntime with equal outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor

from dnge_compress import compress, save

pytest.importorskip("onnxscript", reason="ONNX isn't checked: install the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX isn't checked: install the extra export")


# torch's exporter asks for its own trees in a way that it deprecated.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bert", "vit", "resnet_bottleneck"))]
)
def test_a_pruned_model_answers_in_onnxruntime_as_in_torch(name: str, tmp_path: Path) -> None:
    model = models.make(name)
    small: Any = compress(model, ratio=0.34, of="units", scorer="obs", tokens=256, length=16)
    plain = type(small).from_pretrained(save(small, tmp_path / "out")).eval()
    plain.config.use_cache = False  # of keys and values: the graph answers logits alone
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in model.parameters())
    inputs: Any = models.example_inputs(name)
    file, key = tmp_path / "model.onnx", next(iter(inputs))
    axes = {0: torch.export.Dim("batch")} | ({1: torch.export.Dim("length")} if key == "input_ids" else {})
    torch.onnx.export(plain, kwargs=inputs, dynamic_shapes={key: axes}, dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in batches(inputs[key]):
        answer = torch.from_numpy(session.run(None, {key: batch.numpy()})[0])
        torch.testing.assert_close(answer, models.outputs(plain, {key: batch}), rtol=1e-4, atol=1e-4)


def batches(example: Tensor) -> list[Tensor]:
    """The example, one row of it, and more rows; of text, shorter rows as well."""
    more = torch.cat([example, example.flip(0), example[:1]])
    return [example, example[:1], more, *([more[:, :7]] if example.dim() == 2 else [])]
