"""Stage 2: a byte-level BPE tokenizer and a CLIP pair, trained contrastively on scenes and their captions.

The text encoder is the one that the UNet listens to; the image encoder and the text projection stay beside
it, for evaluation.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from lora_studio.pocket import stages
from lora_studio.pocket.scenes import NATIVE, Scene, draw, held_out_scenes, training_scene, wording
from lora_studio.pocket.stages.words import byte_letters, learn_merges

BATCH = 96
TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from the pocket world's captions; written to `folder`."""
    scenes = [training_scene(i) for i in range(4000)]
    captions = [s.caption("style picture image photo of in the style").replace(",", " ,") for s in scenes]
    merges = learn_merges(Counter(word for caption in captions for word in caption.split()), 600)
    letters = byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = json.dumps({piece: number for number, piece in enumerate(pieces)}, ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "vocab.json", folder / "merges.txt"
    files[0].write_text(vocabulary, "utf-8")
    files[1].write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    tokenizer = CLIPTokenizer(*map(str, files), model_max_length=TOKENS, pad_token=END)
    tokenizer.save_pretrained(folder)
    return tokenizer


class ClipPair(nn.Module):
    """The text encoder, the image encoder and their common space of 64 dimensions."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        vocabulary = tokenizer.get_vocab()
        start, end, size = vocabulary[START], vocabulary[END], stages.configuration("clip")
        size_of_text = size | {"vocab_size": len(vocabulary), "max_position_embeddings": TOKENS}
        text = CLIPTextConfig(bos_token_id=start, eos_token_id=end, pad_token_id=end, **size_of_text)
        vision = CLIPVisionConfig(image_size=NATIVE, patch_size=8, **size)
        self.text, self.vision = CLIPTextModel(text), CLIPVisionModelWithProjection(vision)
        self.text_projection = nn.Linear(size["hidden_size"], size["projection_dim"], bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def embed_text(self, ids: Tensor) -> Tensor:
        """[B, L] token ids -> [B, 64] on the unit sphere."""
        return F.normalize(self.text_projection(self.text(ids).pooler_output), dim=-1)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, 64, 64] in -1..1 -> [B, 64] on the unit sphere."""
        return F.normalize(self.vision(pixels).image_embeds, dim=-1)


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """[B, 32] ids, padded and cut to the model's length."""
    length = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
    return tokenizer(captions, return_tensors="pt", **length).input_ids


@torch.inference_mode()
def retrieval(pair: ClipPair, tokenizer: CLIPTokenizer, scenes: list[Scene]) -> tuple[float, float]:
    """Share of captions that find their own image among all, and of images that find their own caption.

    Scenes with the same caption count as one another's.
    """
    captions, device = [scene.caption() for scene in scenes], pair.log_scale.device
    text = pair.embed_text(token_ids(tokenizer, captions).to(device))
    images = pair.embed_images(stages.images_to_tensor([draw(s, NATIVE, NATIVE) for s in scenes]).to(device))
    scores = text @ images.T
    found = [captions[i] == captions[j] for i, j in enumerate(scores.argmax(1).tolist())]
    named = [captions[i] == captions[j] for i, j in enumerate(scores.argmax(0).tolist())]
    return sum(found) / len(scenes), sum(named) / len(scenes)


def load_pair(folder: Path) -> tuple[ClipPair, CLIPTokenizer]:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pair = ClipPair(tokenizer)
    pair.load_state_dict(load_file(folder / "pair.safetensors"))
    return pair.eval(), tokenizer


def build_clip(folder: Path, steps: int, device: torch.device) -> None:
    """Train both encoders to find each other's pairs (InfoNCE in both directions) into `pair.safetensors`."""
    torch.manual_seed(2)
    rank, size = stages.rank_and_size()
    tokenizer = new_tokenizer(folder / f"tokenizer_{rank}" if rank else folder / "tokenizer")
    pair, held = ClipPair(tokenizer).to(device), held_out_scenes(200)
    config = stages.StageConfig("clip", steps, 1e-3, warmup_steps=100, decay_share=0.5, average_decay=0.99)
    trainee = stages.Trainee(pair, config, folder)

    def loss_at(step: int) -> Tensor:
        first = 10**7 + (step * size + rank) * BATCH
        scenes = [training_scene(first + i) for i in range(BATCH)]
        rng = random.Random(first)
        ids = token_ids(tokenizer, [wording(scene, rng) for scene in scenes]).to(device)
        pixels = stages.images_to_tensor([draw(scene, NATIVE, NATIVE) for scene in scenes]).to(device)
        scores = pair.log_scale.exp().clamp(max=100) * pair.embed_text(ids) @ pair.embed_images(pixels).T
        target = torch.arange(BATCH, device=device)
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2

    def look() -> None:
        found = retrieval(pair, tokenizer, held)
        print("clip retrieval among 200 held-out (text->image, image->text)", found, flush=True)

    if stages.train(trainee, loss_at, look=look, look_every=200):
        state = {name: t.detach().cpu().contiguous() for name, t in pair.state_dict().items()}
        save_file(state, folder / "pair.safetensors")
