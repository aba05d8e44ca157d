"""The judge: a small CNN, trained on real renders only, that names what a generated image shows.

It has never seen a generated image, so it can be trusted to judge them. Train it or look at its accuracy
with `python benchmarks/judge.py [--folder runs/judge]`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from renders import HEADS, UNLABELLED, Renders, labelled_renders, softened, to_unit
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_studio.pocket.scenes import NATIVE, draw, sample_scene
from lora_studio.pocket.stages import images_to_tensor

DEFAULT_FOLDER = Path("runs/judge")
FILE_NAME = "judge.safetensors"  # of SEED
SEED = 11
TRAINING_RENDERS = 12_800
EPOCHS = 10
BATCH = 64
LEARNING_RATE = 4e-3
_WIDTHS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in one image; the colour means nothing for a character."""

    object: str
    colour: str
    background: str
    style: str


class _Block(nn.Module):
    """Halve the sides, widen, and add one residual convolution."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(wider)
        self.conv = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(wider)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down_norm(self.down(x)))
        return F.relu(x + self.norm(self.conv(x)))


class JudgeNet(nn.Module):
    """[B, 3, 64, 64] in -1..1 -> logits by head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in zip((3, *_WIDTHS), _WIDTHS, strict=False)))
        width = 2 * _WIDTHS[-1]
        self.heads = nn.ModuleDict({head: nn.Linear(width, len(names)) for head, names in HEADS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.blocks(pixels)
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return {head: layer(pooled) for head, layer in self.heads.items()}


class Judge:
    """A trained `JudgeNet` and its own accuracy on held-out renders."""

    def __init__(self, net: JudgeNet, accuracies: dict[str, float]) -> None:
        self.net, self._accuracies = net.eval(), accuracies

    def accuracy_on_renders(self) -> dict[str, float]:
        """Shares right on held-out renders by "style/head", e.g. "plain/colour"."""
        return dict(self._accuracies)

    @torch.inference_mode()
    def classify(self, images: list[Image.Image]) -> list[Verdict]:
        """One verdict for each image; other sizes are resized to 64 px first."""
        native = [p.convert("RGB").resize((NATIVE, NATIVE), Image.Resampling.BICUBIC) for p in images]
        verdicts: list[Verdict] = []
        for start in range(0, len(native), 256):
            logits = self.net(images_to_tensor(native[start : start + 256]))
            named = {head: [HEADS[head][i] for i in answer.argmax(1)] for head, answer in logits.items()}
            rows = zip(*(named[head] for head in ("object", "colour", "background", "style")), strict=True)
            verdicts += [Verdict(*row) for row in rows]
        return verdicts


def _loss(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    return torch.stack([F.cross_entropy(logits[h], labels[h], ignore_index=UNLABELLED) for h in HEADS]).sum()


def _train(net: JudgeNet, renders: Renders, epochs: int, seed: int) -> None:
    """One-cycle AdamW over softened renders; a line of progress for every epoch."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(renders) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.15)
    started = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(renders), generator=generator)
        for rows in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            pixels = softened(to_unit(renders.pixels[rows]), generator)
            loss = _loss(net(pixels), {head: numbers[rows] for head, numbers in renders.labels.items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean = total / (len(renders) // BATCH)
        seconds = time.monotonic() - started
        print(f"judge: epoch {epoch + 1} of {epochs}, loss {mean:.4f}, {seconds:.0f} s", flush=True)


@torch.inference_mode()
def _accuracies(net: JudgeNet, each: int) -> dict[str, float]:
    """Shares right by "style/head" on `each` held-out renders of every style."""
    net.eval()
    shares: dict[str, float] = {}
    for style in HEADS["style"]:
        renders = labelled_renders(each, style=style, test=True)
        logits = [net(to_unit(pixels)) for pixels in renders.pixels.split(256)]
        for head, truth in renders.labels.items():
            seen = truth != UNLABELLED
            if seen.any():
                answers = torch.cat([part[head].argmax(1) for part in logits])
                shares[f"{style}/{head}"] = round((answers == truth)[seen].float().mean().item(), 4)
    return shares


def world_hash() -> str:
    """SHA-256 of all names and of a few renders in every style: a judge knows what it has learned."""
    digest = hashlib.sha256(json.dumps(HEADS).encode())
    for style in HEADS["style"]:
        for seed in range(4):
            digest.update(draw(sample_scene(seed), NATIVE, NATIVE, style=style).tobytes())
    return digest.hexdigest()


def _save(net: JudgeNet, accuracies: dict[str, float], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, temporary, metadata={"accuracy": json.dumps(accuracies), "world": world_hash()})
    os.replace(temporary, path)


def _load(path: Path) -> Judge | None:
    """The judge in the file; None if there is none or the pocket world is named or drawn otherwise by now."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if metadata.get("world") != world_hash():
            return None
        net = JudgeNet()
        net.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
    return Judge(net, json.loads(metadata["accuracy"]))


def train_judge(
    *, renders: int = TRAINING_RENDERS, epochs: int = EPOCHS, tested: int = 2000, seed: int = SEED
) -> Judge:
    """A new judge, on the same machine the same one for a seed: of its first weights and of its batches."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = JudgeNet()
    started = time.monotonic()
    data = labelled_renders(renders)
    print(f"judge: {renders} renders drawn in {time.monotonic() - started:.0f} s", flush=True)
    _train(net, data, epochs, seed)
    return Judge(net, _accuracies(net, tested))


def load_or_train(folder: Path = DEFAULT_FOLDER, seed: int = SEED) -> Judge:
    """The judge of `folder/judge.safetensors`, of another seed that of `judge_SEED.safetensors`.

    Trained (minutes on one core) and saved there if missing.
    """
    path = folder / (FILE_NAME if seed == SEED else f"judge_{seed}.safetensors")
    judge = _load(path)
    if judge is None:
        judge = train_judge(seed=seed)
        _save(judge.net, judge.accuracy_on_renders(), path)
    return judge


def main() -> None:
    """Train the judge if need be and print its accuracy on held-out renders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--seed", type=int, default=SEED, help="of another judge, to ask beside the first")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    judge = load_or_train(options.folder, options.seed)
    print("parameters:", sum(p.numel() for p in judge.net.parameters()))
    for name, share in judge.accuracy_on_renders().items():
        print(f"{name:28} {100 * share:6.2f} %")


if __name__ == "__main__":
    main()
