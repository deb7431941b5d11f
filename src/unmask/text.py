"""Captions beside pictures: words learned from the captions and a small transformer, or a text tower of Hugging Face's; and the loss that pairs them.

A caption travels as token ids (B, L), -1 where it has ended.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from unmask.contrast import sigmoid_pairs, unit
from unmask.encoders.features import Features
from unmask.encoders.vit import mae_init
from unmask.errors import Refused
from unmask.model import Objective
from unmask.targets.features import digest

OWN = "own"  # --method.text: our own transformer
MOST = 8192  # words of a vocabulary
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:'\w+)?")  # where words are not parted by spaces, signs


class Reader(ABC):
    """Captions to token ids. `length`: tokens of a caption; what is longer is cut."""

    def __init__(self, length: int):
        self.length = length

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each caption, at least one and at most `length`."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, length) int64, -1 behind the end."""
        ids = torch.full((len(texts), self.length), -1)
        for row, found in enumerate(self.tokens(texts)):
            ids[row, : len(found)] = torch.tensor(found)
        return ids


def words_of(text: str) -> list[str]:
    """The words of a caption, in small letters, without punctuation."""
    return WORD.findall(text.casefold())


class Words(Reader):
    """Ids of words: 0 for those that are not in the vocabulary, then 1, 2, … in its order."""

    def __init__(self, vocabulary: Sequence[str], length: int):
        super().__init__(length)
        self.vocabulary = list(vocabulary)
        self.ids = {word: number for number, word in enumerate(self.vocabulary, 1)}

    def tokens(self, texts):
        return [[self.ids.get(word, 0) for word in words_of(text)[: self.length]] or [0] for text in texts]


def learn_words(texts: Iterable[str], least: int = 2, most: int = MOST) -> list[str]:
    """The vocabulary of captions: words that stand in at least `least` of their places, the most frequent first. All words of few captions."""
    counts = Counter(word for text in texts for word in words_of(text))
    kept = [word for word, count in counts.items() if count >= least] or list(counts)
    return sorted(kept, key=lambda word: (-counts[word], word))[:most]


class Tower(nn.Module, ABC):
    """Token ids (B, L) to a vector a caption, (B, width)."""

    width: int

    @abstractmethod
    def forward(self, ids: Tensor) -> Tensor: ...


class TextTransformer(Tower):
    """A small transformer in which all words see each other; the mean of what it makes of them (SigLIP's text tower looks both ways as well)."""

    def __init__(self, vocabulary: int, length: int, width: int = 256, depth: int = 4, heads: int = 4):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.width = width
        self.embed = nn.Embedding(vocabulary + 1, width)
        self.places = nn.Parameter(torch.zeros(1, length, width))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        for table in (self.embed.weight, self.places):
            nn.init.trunc_normal_(table, std=0.02 if table is self.embed.weight else 0.01)

    def forward(self, ids):
        there = ids >= 0  # (B, L)
        x = self.embed(ids.clamp(min=0)) + self.places  # (B, L, D)
        bias = torch.where(there, 0.0, -torch.inf)[:, None, None].to(x.dtype)  # (B, 1, 1, L)
        for block in self.blocks:
            x = block(x, attn_mask=bias)
        return mean_of(self.norm(x), there)


def mean_of(x: Tensor, there: Tensor) -> Tensor:
    """The mean of the rows (B, L, D) that are `there` (B, L)."""
    weight = there.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(1) / weight.sum(1)


class Foreign(Tower):
    """A text tower of Hugging Face's, frozen: of networks of pictures and texts the features that they compare, of others the mean of the last hidden states.

    Its weights are no part of the learner, only a digest of them is: a run cannot go on with another tower.
    """

    def __init__(self, place: str):
        super().__init__()
        model = pretrained("AutoModel", place)
        self.outside = (model.requires_grad_(False).eval(),)  # in a tuple: not among our modules, so not among our weights
        self.place, self.paired = place, "text_config" in model.config.to_dict()
        with torch.no_grad():
            self.width = self(torch.zeros(1, 2, dtype=torch.int64)).shape[1]
        self.register_buffer("digest", torch.tensor(digest(model)))

    @torch.no_grad()
    def forward(self, ids):
        there, model = ids >= 0, self.outside[0]
        words = {"input_ids": ids.clamp(min=0), "attention_mask": there.long()}
        if not self.paired:
            return mean_of(model(**words).last_hidden_state.float(), there)
        found = model.get_text_features(**words)
        return (found if isinstance(found, Tensor) else found.pooler_output).float()

    def _apply(self, fn: Any, recurse: bool = True) -> Foreign:
        self.outside[0]._apply(fn)  # to the device, with us
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        kept = state_dict.get(prefix + "digest")
        if kept is not None and int(kept) != int(self.digest):
            raise Refused(f"the text tower {self.place} is not the one that this run began with: its weights have changed")
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Theirs(Reader):
    """Ids of a Hugging Face tokenizer, with whatever it puts before and behind a text."""

    def __init__(self, place: str, length: int):
        super().__init__(length)
        self.tokenizer = pretrained("AutoTokenizer", place)

    def tokens(self, texts):
        return self.tokenizer(list(texts), truncation=True, max_length=self.length)["input_ids"]


def pretrained(kind: str, place: str) -> Any:
    """A model or tokenizer of transformers out of a folder, or by the name of one that is on this machine or on the hub. Refused."""
    try:
        import transformers
    except ImportError:
        raise Refused(f'--method.text {place} needs transformers: pip install "unmask[hf]"') from None
    try:
        return getattr(transformers, kind).from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"--method.text {place} is no text tower that transformers can open: {' '.join(str(error).split())[:160]}") from None


def reader_of(text: str, vocabulary: Sequence[str], length: int) -> Reader:
    """What turns captions into token ids, by the word `--method.text`."""
    return Words(vocabulary, length) if text == OWN else Theirs(text, length)


class Paired(Objective):
    """Which caption belongs to which picture (SigLIP's sigmoid loss), asked of the visible patches' mean and the text tower's vector, each through a linear layer.

    `x` holds the captions' ids as `text` (B, L). Temperature and bias are learned and begin at 10 and −10.
    """

    note = "captions: the loss between pictures and texts begins near 10, and is added to that of hidden patches"

    def __init__(self, width: int, reader: Reader, tower: Tower, out: int, weight: float):
        super().__init__()
        self.reader, self.tower, self.weight = reader, tower, weight
        self.of_picture, self.of_text = nn.Linear(width, out), nn.Linear(tower.width, out)
        mae_init(self.of_picture)
        mae_init(self.of_text)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def pictures(self, features: Features) -> Tensor:
        """One vector a picture, (B, K)."""
        return self.of_picture(features.patches.mean(1))

    def texts(self, ids: Tensor) -> Tensor:
        """One vector a caption, (B, K)."""
        return self.of_text(self.tower(ids))

    @torch.no_grad()
    def embed(self, captions: Sequence[str], batch_size: int = 256) -> Tensor:
        """Captions in words as rows of length one, (n, K)."""
        parts = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]
        return torch.cat([unit(self.texts(self.reader(part).to(self.bias.device))) for part in parts])

    def forward(self, features, mask, x, encoder):
        if not isinstance(x, dict) or "text" not in x:
            raise ValueError('this learner reads captions: its input is {"images": pictures, "text": token ids}')
        return self.weight * sigmoid_pairs(self.pictures(features), self.texts(x["text"]), self.log_temperature, self.bias)
