"""Stage 2 of the flow base: a byte-level BPE tokenizer and a small Qwen3 that has read captions.

It learns to go on with a caption, as its large kin has with all texts, and to say at the end what the scene
holds, from the layer that a Z-Image listens to (the last but one). No image is shown to it.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from lora_studio.pocket import stages
from lora_studio.pocket.scenes import (
    BACKGROUNDS,
    COLOURS,
    OBJECT_NAMES,
    POSITIONS,
    SIZES,
    Scene,
    held_out_scenes,
    made_up,
    training_scene,
    wording,
)
from lora_studio.pocket.stages.words import byte_letters, learn_merges

BATCH = 192
MOST_TOKENS = 512
END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen's own, as far as one message of a user goes: with `enable_thinking` on, it adds nothing.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDINGS, _ROOM = 2, 32
SAYS_LENGTH = 0.25  # what the next token counts beside what the scene holds
UNSAID = "unsaid"
_SLOTS: dict[str, tuple[str, ...]] = {
    **{f"{slot} name": (UNSAID, *OBJECT_NAMES) for slot in ("first", "second")},
    **{f"{slot} colour": (UNSAID, *COLOURS) for slot in ("first", "second")},
    **{f"{slot} size": (UNSAID, *SIZES) for slot in ("first", "second")},
    "position": (UNSAID, *POSITIONS),
    "background": tuple(BACKGROUNDS),
}


def new_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """A Qwen tokenizer whose merges are learned from the pocket world's captions; written to `folder`."""
    captions = [training_scene(i).caption("style picture image photo of in the style") for i in range(4000)]
    words = Counter(word for caption in captions for word in caption.replace(",", " ,").split())
    pieces = Counter({"user": 4000, "assistant": 4000, "a": 4000, "an": 400})
    for word, count in words.items():
        pieces["," if word == "," else "Ġ" + word] += count
    letters = byte_letters()
    merges = learn_merges(pieces, 600, ending="")
    vocabulary = dict.fromkeys((*letters, *map("".join, merges)))
    numbered = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Qwen2Tokenizer(
        numbered, merges, additional_special_tokens=[TURN, TURN_END], model_max_length=MOST_TOKENS
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3ForCausalLM:
    """A Qwen3 for the words of a tokenizer, with its head tied to its embeddings."""
    numbers = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(tokenizer), **numbers, **stages.configuration("flow_text"))
    )


def tokens(tokenizer: Qwen2Tokenizer, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, L] of the captions as a user's messages, padded to the longest."""
    asked = [[{"role": "user", "content": caption}] for caption in captions]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
    texts = [tokenizer.apply_chat_template(one, **options) for one in asked]
    both = tokenizer(texts, padding="longest", truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
    return both.input_ids, both.attention_mask


@torch.no_grad()
def features(encoder: Qwen3Model, tokenizer: Qwen2Tokenizer, captions: list[str]) -> list[Tensor]:
    """What a Z-Image is given for each caption: [its tokens, D] of the last layer but one, float32."""
    ids, mask = tokens(tokenizer, captions)
    device = encoder.device
    states = encoder(ids.to(device), attention_mask=mask.to(device), output_hidden_states=True)
    rows = zip(states.hidden_states[-2].float(), mask.bool(), strict=True)
    return [row[real.to(device)] for row, real in rows]


def lengthened(tokenizer: Qwen2Tokenizer, caption: str, rng: random.Random) -> str:
    """The caption with made-up words, until it is one of those that a Z-Image pads to 64 tokens."""
    while tokens(tokenizer, [caption])[0].shape[1] <= _ROOM:
        caption += f", {made_up(rng)} {made_up(rng)}"
    return caption


class Wordings:
    """What a Z-Image is given for captions of training scenes, each read once and written to a file.

    A scene has `_WORDINGS` of them. One that does not fit into `_ROOM` tokens is the plain caption.
    """

    def __init__(self, text: Path, path: Path, scenes: int, device: torch.device) -> None:
        if not path.is_file():
            _read_wordings(text, path, scenes, device)
        stored = load_file(path)
        self.features, self.lengths, self.device = stored["features"], stored["lengths"], device

    def of(self, numbers: list[int], captions: list[str], step: int) -> tuple[Tensor, Tensor]:
        """[B, 32, D] features in float32 and [B] lengths of scenes' captions; of "" where one is empty."""
        rng = random.Random(step)
        said = [1 + _WORDINGS * number + rng.randrange(_WORDINGS) for number in numbers]
        rows = [row if caption else 0 for row, caption in zip(said, captions, strict=True)]
        return self.features[rows].float().to(self.device), self.lengths[rows].to(self.device)


def _read_wordings(folder: Path, path: Path, scenes: int, device: torch.device) -> None:
    encoder, tokenizer = load_text(folder, device)
    captions = [""]
    for scene in map(training_scene, range(scenes)):
        said = [wording(scene, random.Random(_WORDINGS * scene.seed + n)) for n in range(_WORDINGS)]
        captions += [one if len(tokens(tokenizer, [one])[0][0]) <= _ROOM else scene.caption() for one in said]
    features_of, lengths = (
        torch.zeros(len(captions), _ROOM, encoder.config.hidden_size, dtype=torch.float16),
        [],
    )
    for first in range(0, len(captions), BATCH):
        for row, one in enumerate(features(encoder, tokenizer, captions[first : first + BATCH]), first):
            features_of[row, : len(one)] = one.half()
            lengths.append(len(one))
    temporary = path.with_suffix(".tmp")
    save_file({"features": features_of, "lengths": torch.tensor(lengths)}, temporary)
    temporary.rename(path)


def said(scene: Scene) -> list[int]:
    """What a caption says of its scene, a number for each of `_SLOTS`."""
    found: dict[str, str] = {"background": scene.background}
    for slot, thing in zip(("first", "second"), scene.things, strict=False):
        found |= {f"{slot} name": thing.name, f"{slot} colour": thing.colour}
        if "size" in thing.says:
            found[f"{slot} size"] = thing.size
    if "position" in scene.things[0].says:
        found["position"] = scene.things[0].position
    return [names.index(found.get(slot, UNSAID)) for slot, names in _SLOTS.items()]


class Reader(nn.Module):
    """The language model and a linear answer for each of `_SLOTS` from the end of what it has read."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        super().__init__()
        self.language = new_text_encoder(tokenizer)
        width = self.language.config.hidden_size
        self.norm = nn.RMSNorm(width)  # a Z-Image norms what it hears, too
        self.answers = nn.ModuleList(nn.Linear(width, len(names)) for names in _SLOTS.values())

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, L] ids -> [B, L, V] logits of the next token and, for each slot, [B, its names] logits."""
        states = self.language(ids, attention_mask=mask, output_hidden_states=True)
        last = mask.sum(1) - 1
        end = self.norm(states.hidden_states[-2][torch.arange(len(ids)), last])
        return states.logits, [answer(end) for answer in self.answers]


@torch.inference_mode()
def understood(reader: Reader, tokenizer: Qwen2Tokenizer, scenes: list[Scene]) -> float:
    """Share of the scenes of whose captions every slot is answered rightly."""
    ids, mask = tokens(tokenizer, [scene.caption() for scene in scenes])
    device = next(reader.parameters()).device
    answers = torch.stack([logits.argmax(1) for logits in reader(ids.to(device), mask.to(device))[1]], dim=1)
    return float((answers.cpu() == torch.tensor([said(scene) for scene in scenes])).all(1).float().mean())


def load_text(folder: Path, device: torch.device) -> tuple[Qwen3Model, Qwen2Tokenizer]:
    encoder = Qwen3Model.from_pretrained(folder / "done", dtype=torch.float32)
    return encoder.to(device).eval(), Qwen2Tokenizer.from_pretrained(folder / "tokenizer")


def build_text(folder: Path, steps: int, device: torch.device) -> None:
    """Train the text encoder and save it as a transformers folder."""
    torch.manual_seed(2)
    rank, size = stages.rank_and_size()
    tokenizer = new_tokenizer(folder / f"tokenizer_{rank}" if rank else folder / "tokenizer")
    reader, held = Reader(tokenizer).to(device), held_out_scenes(500)
    config = stages.StageConfig("text", steps, 2e-3, decay_share=0.5, average_decay=0.98)
    trainee = stages.Trainee(reader, config, folder)

    def loss_at(step: int) -> Tensor:
        first = 10**7 + (step * size + rank) * BATCH
        scenes, rng = [training_scene(first + i) for i in range(BATCH)], random.Random(first)
        ids, mask = (t.to(device) for t in tokens(tokenizer, [wording(scene, rng) for scene in scenes]))
        logits, answers = reader(ids, mask)
        wanted = ids.masked_fill(mask == 0, -100)
        spoken = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())
        targets = torch.tensor([said(scene) for scene in scenes], device=device).unbind(1)
        named = [F.cross_entropy(answer, target) for answer, target in zip(answers, targets, strict=True)]
        return SAYS_LENGTH * spoken + torch.stack(named).mean()

    def look() -> None:
        share = understood(reader, tokenizer, held)
        print("captions of held-out scenes understood in all", round(share, 4), flush=True)

    if stages.train(trainee, loss_at, look=look, look_every=50):
        reader.language.save_pretrained(folder / "done")
