"""What lets an encoder be loaded, saved, and shared on the hub, with its provenance and card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn

from dnge_compress.core.errors import CheckpointError, first_line
from dnge_compress.encoder import hub
from dnge_compress.graph.digest import digest

E = TypeVar("E", bound="HubEncoder")


class HubEncoder(nn.Module, ModelHubMixin):
    """A module that is made from one `config`, a dataclass of the class's `config_class`."""

    config_class: ClassVar[type[Any]]
    config: Any
    origin = hub.Origin()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # a file or "base" too, and nothing of the config from outside
        cls: type[E], source: str | Path = "base", *, revision: str | None = None, token: str | bool | None = None
    ) -> E:
        """The shipped encoder ("base"), or one from a file, a folder or a hub id (owner/name). Raises CheckpointError.

        `revision` is a branch, tag or commit of the hub's, `token` the one for a private repository. A folder called
        base is `Path("base")`.

            encoder = DNGEncoder.from_pretrained("base")
        """
        stored = hub.fetch(source, revision, token)
        problem = f"'{stored.path}' holds no encoder of this version"
        try:
            with torch.random.fork_rng(devices=[]):  # loading draws nothing from the caller's generator
                encoder = cls(cls.config_class(**stored.config))
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
        hub.refuse_encoder_target(Path(path))
        if Path(path).suffix == hub.BASE.suffix:
            hub.write(Path(path), self.state_dict(), asdict(self.config), self._origin().provenance)
            return None
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
