"""DNGEncoder: two passes and three readouts. It predicts corrections, in log nats, to the OBS costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from dnge_compress.core.errors import CheckpointError, first_line
from dnge_compress.encoder import hub
from dnge_compress.encoder.features import FEATURES
from dnge_compress.encoder.messages import CHUNK_ELEMENTS
from dnge_compress.encoder.passes import MessagePass, States, run_passes
from dnge_compress.encoder.pooling import segment_mean
from dnge_compress.graph.digest import digest
from dnge_compress.graph.types import ModelGraph


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, stored in the header of its weights: of its states, of the node features, and the `limit`
    of a correction in log nats."""

    hidden: int = 48
    features: int = FEATURES
    limit: float = 3.0


@dataclass(frozen=True)
class Corrections:
    """Factors by which the OBS costs are wrong, as natural logs: one per space, one per layer `[L]`; and per weight
    matrix the log of its loss gradient's mean square."""

    spaces: Mapping[str, Tensor]
    layers: Mapping[str, Tensor]
    matrices: Mapping[str, Tensor]


class DNGEncoder(
    nn.Module,
    ModelHubMixin,
    library_name="dnge-compress",
    license="mit",
    tags=["dnge-compress", "graph-encoder", "structured-pruning"],
):
    """Passes messages over a network as a dynamic graph, forward and backward, and reads out spaces, layers, matrices.

    `forward(graph, weights, features, layer_costs)` takes tensors by name, node features per space `[U, F]`, and
    log layer costs; sizes, depths and families are free.
    """

    origin = hub.Origin()

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or EncoderConfig()
        h, f = self.config.hidden, self.config.features
        self.ahead = MessagePass(h, f)
        self.back = MessagePass(h, f + h, backward=True)
        self.space = _readout(2 * h + f)
        self.layer = _readout(2 * h + 1)
        self.matrix = _readout(4 * h)

    def forward(
        self,
        graph: ModelGraph,
        weights: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
        layer_costs: Mapping[str, Tensor],
        chunk: int = CHUNK_ELEMENTS,
    ) -> Corrections:
        """Corrections for every prunable space, every block and every matrix of the network."""
        states = run_passes((self.ahead, self.back), graph, weights, features, chunk)
        return Corrections(
            {name: self._bounded(self._space(states[name], x)) for name, x in features.items()},
            self._layers(graph, states, layer_costs),
            self._matrices(graph, states),
        )

    def _space(self, states: Tensor, features: Tensor) -> Tensor:
        """From the mean unit of a space, a scalar."""
        return self.space(torch.cat([states, features], -1).mean(0)).squeeze(-1)

    def _layers(self, graph: ModelGraph, states: States, costs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per block, from the mean state of the units inside it and its measured cost."""
        found = {}
        for space in graph.of_kind("layer"):
            inside = [_states_inside(graph, states, module) for module in space.modules]
            bounds = torch.tensor([0, *(len(s) for s in inside)]).cumsum(0).to(inside[0].device)
            # What trains is batched over encoders, which segment reductions can't be.
            pooled = (
                torch.stack([s.mean(0) for s in inside]) if self.training else segment_mean(torch.cat(inside), bounds)
            )
            found[space.name] = self._bounded(
                self.layer(torch.cat([pooled, costs[space.name][:, None]], -1)).squeeze(-1)
            )
        return found

    def _matrices(self, graph: ModelGraph, states: States) -> dict[str, Tensor]:
        means = {name: s.mean(0) for name, s in states.items()}
        found = {}
        for step in graph.steps:
            for param in step.params:
                if param.endswith("weight") and step.reads and step.op not in ("norm", "batchnorm", "embed"):
                    pair = torch.cat([means[step.reads[0]], means[step.writes[0]]])
                    found[param] = self.matrix(pair).squeeze(-1)
        return found

    def _bounded(self, x: Tensor) -> Tensor:
        return self.config.limit * torch.tanh(x / self.config.limit)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # a file or "base" too, and nothing of the config from outside
        cls, source: str | Path = "base", *, revision: str | None = None, token: str | bool | None = None
    ) -> DNGEncoder:
        """The shipped encoder ("base"), or one from a file, a folder or a hub id (owner/name). Raises CheckpointError.

        `revision` is a branch, tag or commit of the hub's, `token` the one for a private repository. A folder called
        base is `Path("base")`.

            encoder = DNGEncoder.from_pretrained("base")
        """
        stored = hub.fetch(source, revision, token)
        problem = f"'{stored.path}' holds no encoder of this version"
        try:
            with torch.random.fork_rng(devices=[]):  # loading draws nothing from the caller's generator
                encoder = cls(EncoderConfig(**stored.config))
        except (TypeError, RuntimeError, ValueError) as e:
            raise CheckpointError(f"{problem} ({first_line(e)}); update dnge_compress, or {hub.WAY_OUT}") from None
        found, wanted = ({n: t.shape for n, t in x.items()} for x in (stored.tensors, encoder.state_dict()))
        wrong = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        if wrong:
            named = f"{len(wrong)} tensors are missing, unknown or of another shape, '{wrong[0]}' first"
            raise CheckpointError(f"{problem} ({named}); update dnge_compress, or {hub.WAY_OUT}")
        encoder.load_state_dict(dict(stored.tensors))
        encoder.origin = hub.Origin(stored.provenance, stored.card, digest(encoder))
        return encoder.eval()

    def save_pretrained(  # type: ignore[override]  # provenance comes second, as a file may be written too
        self, path: str | Path, provenance: Mapping[str, Any] | None = None, **options: Any
    ) -> str | None:
        """Write weights, config and provenance: one file if `path` ends in .safetensors, else a folder with a card.

        Unchanged weights keep the provenance and card that they were loaded with, unless new `provenance` is given;
        a card that lies in the folder stays. `options` are ModelHubMixin's. Raises CheckpointError.
        """
        if provenance is not None:
            self.origin = hub.Origin(provenance, "", digest(self))
        if Path(path).suffix == hub.BASE.suffix:
            hub.write(Path(path), self.state_dict(), asdict(self.config), self._origin().provenance)
            return None
        if Path(path).is_file():
            raise CheckpointError(f"'{path}' is a file; give a folder, or a name that ends in {hub.BASE.suffix}")
        hub.refuse_other(Path(path))
        try:
            return super().save_pretrained(path, **options)
        except OSError as e:
            raise CheckpointError(f"can't write to '{path}' ({first_line(e)}); choose another place") from e

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload weights, config and card to the hub, and return the commit's URL. `options` (private, token,
        commit_message, …) are ModelHubMixin's. Raises CheckpointError.

            encoder.push_to_hub("owner/my-encoder")
        """
        if Path(repo_id).suffix == hub.BASE.suffix:
            raise CheckpointError(f"'{repo_id}' is the name of a file; push to a hub id (owner/name)")
        try:
            return super().push_to_hub(repo_id, **options)
        except hub.HUB_ERRORS as e:
            raise CheckpointError(
                f"'{repo_id}' can't be pushed ({first_line(e)}); check the id (owner/name), the connection and "
                "`hf auth login`, or save_pretrained to a folder"
            ) from e

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """The card that the weights came with, else one of what is known about them; with the hub's front matter."""
        origin = self._origin()
        text = origin.card or hub.card(asdict(self.config), origin.provenance)
        has_front_matter = text.startswith("---\n")
        return ModelCard(text if has_front_matter else f"---\n{self._hub_mixin_info.model_card_data}\n---\n\n{text}")

    def _save_pretrained(self, save_directory: Path) -> None:
        config = asdict(self.config)
        hub.write(save_directory / hub.WEIGHTS, self.state_dict(), config, self._origin().provenance)
        (save_directory / hub.CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def _origin(self) -> hub.Origin:
        """Where the weights are from; nothing is known about weights that have changed since."""
        return self.origin if self.origin.digest == digest(self) else hub.Origin()


def _readout(inputs: int) -> nn.Sequential:
    """A small MLP whose last layer starts at zero: an untrained encoder leaves the OBS costs as they are."""
    last = nn.Linear(64, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, 64), nn.SiLU(), last)


def _states_inside(graph: ModelGraph, states: States, module: str) -> Tensor:
    """States of all units whose space lies wholly inside a block; of what it writes, if there is none."""
    prefix = f"{module}."
    spaces = graph.spaces_within(prefix)
    if not spaces:
        spaces = (next(s.writes[0] for s in graph.steps if any(p.startswith(prefix) for p in s.params)),)
    return torch.cat([states[s] for s in spaces])
