"""What layers are called in published files, and what a name alone says of its layer."""

import re

DENOISER = "unet"
"""The part that a file means by a layer without one."""

DENOISER_TITLE = "UNet"

PART_PATTERN = r"unet|text_encoder(?:_2)?"
"""The parts before diffusers' paths."""

_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
_BLOCK = re.compile(r"lora_unet_(?:(down|up|input|output)_blocks_(\d+)|(mid|middle)_block|(.*))_?.*")
_ENCODER = re.compile(r"lora_(te\d?)_.*?_layers_(\d+)_.*")
_HALVES = ("down", "input", "mid", "up", "output", "other")
_READS_TEXT = re.compile(r"attn2[._]to_[kv]$")
_ROLE = re.compile(  # the last words of a layer's name; what stands before them is its block
    r"_((?:attn[12]_to_(?:q|k|v|out_0))|ff_net_(?:0_proj|2)|proj_(?:in|out)|self_attn_(?:q|k|v|out)_proj"
    r"|mlp_fc[12]|(?:conv1|conv2|conv_shortcut|time_emb_proj|conv|op)|(?:in|emb|out)_layers_\d|skip_connection)$"
)


def path_name(part: str, path: str, *, two_encoders: bool) -> str:
    """A layer by its diffusers path, as kohya would spell that."""
    prefix = "lora_te1_" if part == "text_encoder" and two_encoders else _PREFIXES.get(part, f"{part}_")
    return prefix + path.replace(".", "_")


def reads_text(name: str) -> bool:
    """Whether the layer is a key or value of cross-attention, whose inputs are as wide as the conditioning.

    Of its path, or of its name in UIs' spelling.
    """
    return _READS_TEXT.search(name) is not None


def block_of(name: str) -> str:
    """A layer's place for people: "down 1", "mid", "output 3", "te1 layer 5", or "other"."""
    if found := _ENCODER.fullmatch(name):
        return f"{found[1]} layer {found[2]}"
    found = _BLOCK.fullmatch(name)
    if found and found[1]:
        return f"{found[1]} {found[2]}"
    return "mid" if found and found[3] else "other"


def block_order(block: str) -> tuple[int, str, int]:
    """For sorting what `block_of` gives, as an image goes through: text encoders, then down, mid and up."""
    head, _, number = block.rpartition(" ")
    head = head or block
    half = _HALVES.index(head) if head in _HALVES else -1
    return half, head if half == -1 else "", int(number) if number.isdigit() else 0


def split_role(name: str) -> tuple[str, str]:
    """A layer's name in UIs' spelling -> its block, and its role there: "attn1_to_q", or "other"."""
    found = _ROLE.search(name)
    block = name[: found.start()] if found else name
    return block.removeprefix("lora_"), found[1] if found else "other"
