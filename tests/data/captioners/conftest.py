"""Random miniatures of captioning models, saved to disk as the real ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
WORDS = [*SPECIAL, "a", "photo", "of", "red", "ball", "cat", "the", "on", "green", "sky"]
WILD = 1.0  # initializer_range: large, so that random weights answer differently for different images


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of one layer that looks at 32x32 pixels and knows a dozen words."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("models") / "tiny-blip"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]", "[ENC]"])
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 64, **ids}
    config = BlipConfig(
        text_config={**layer, **text, "projection_dim": 16, "initializer_range": WILD},
        vision_config={**layer, "image_size": 32, "patch_size": 16, "initializer_range": WILD},
        projection_dim=16,
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessorPil(size=size), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def florence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Florence-2 of one layer that looks at 64x64 pixels and writes bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        BartTokenizer,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("models") / "tiny-florence"
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    tokenizer = BartTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    small = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    counts = {f"{side}_{name}": count for side in ("encoder", "decoder") for name, count in small.items()}
    config = Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": 16,
            "max_position_embeddings": 256,
            "decoder_start_token_id": 2,
            "init_std": WILD,
            **counts,
        },
        vision_config={
            "depths": (1, 1, 1, 1),
            "embed_dim": (8, 8, 8, 8),
            "num_heads": (2, 2, 2, 2),
            "num_groups": (2, 2, 2, 2),
            "window_size": 2,
            "projection_dim": 16,
        },
        image_token_id=tokenizer.image_token_id,
    )
    torch.manual_seed(0)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    images.image_seq_length = 5  # 64 pixels are 2x2 patches of 32, and their mean
    Florence2Processor(images, tokenizer).save_pretrained(folder)
    return folder
