"""sd-scripts' and LyCORIS' networks as adapters: network_module, its dimensions and network_args."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_studio.recipe.migrate.draft import Settings
from lora_studio.recipe.migrate.reading import pairs_of
from lora_studio.recipe.migrate.values import is_off, number_in, whole_in, yes_in

_LYCORIS = {  # algo -> our kind, and what differs
    "lora": ("lora", ""),
    "locon": ("locon", ""),
    "loha": ("loha", ""),
    "lokr": ("lokr", ""),
    "diag-oft": ("oft", "the rank is the size of a block"),
    "boft": ("oft", "one factor, not several"),
    "dylora": ("lora", "all ranks together, not one at a time"),
    "full": ("full", "the base's own layers"),
}
# LyCORIS' presets (its config.py): those with convolutions, without text encoders, and what some leave out
_WITH_CONV = ("full", "unet-only", "unet-convblock-only")
_UNET_ALONE = ("unet-only", "unet-transformer-only", "unet-convblock-only")
_LEFT_OUT = {
    "attn-only": ("*.ff.net.*", "*.proj_in", "*.proj_out", "text_encoder*.fc1", "text_encoder*.fc2"),
    "unet-convblock-only": ("*.attentions.*",),
}
_PRESETS = (*_WITH_CONV, *_UNET_ALONE, *_LEFT_OUT, "full-lin", "attn-mlp")
_LARGEST = 4096
_LAYERS = "[[adapter.layers]] gives layers ranks, alphas and learning rates by pattern"
_UNSUPPORTED = {
    **dict.fromkeys(
        (
            "down_lr_weight",
            "mid_lr_weight",
            "up_lr_weight",
            "block_lr_zero_threshold",
            "block_dims",
            "block_alphas",
            "conv_block_dims",
            "conv_block_alphas",
            "train_block_indices",
            "reg_dims",
            "reg_lrs",
            "network_reg_dims",
            "network_reg_lrs",
            "exclude_patterns",
            "include_patterns",
            "train_blocks",
            "train_double_block_indices",
            "train_single_block_indices",
            "in_dims",
            "img_attn_dim",
            "txt_attn_dim",
            "img_mlp_dim",
            "txt_mlp_dim",
            "img_mod_dim",
            "txt_mod_dim",
            "single_dim",
            "single_mod_dim",
            "emb_dims",
            "context_attn_dim",
            "context_mlp_dim",
            "context_mod_dim",
            "x_attn_dim",
            "x_mlp_dim",
            "x_mod_dim",
        ),
        _LAYERS,
    ),
    **dict.fromkeys(
        ("dropout", "network_dropout"),
        "adapter.rank_dropout and adapter.module_dropout leave out ranks or layers",
    ),
    "factor": "LoKr chooses its factor itself",
    "decompose_both": "LoKr decomposes the second factor alone",
    "full_matrix": "LoKr's second factor has adapter.rank",
    "constraint": "adapter.max_norm limits products of factors",
    "constrain": "adapter.max_norm limits products of factors",
    "rescaled": "there is no such scale",
    "train_norm": "norms stay as the base has them; adapter.kind = full trains them",
    "use_scalar": "there is no such scale",
    "rs_lora": "adapter.rslora",
    "unbalanced_factorization": "LoKr chooses its factor itself",
    "bypass_mode": "how it is computed, not what is learned",
    "rank_dropout_scale": "left out ranks are not made up for",
    "block_size": "for oft the rank is the size of a block",
    "unit": "all ranks together, not one at a time",
    "loraplus_text_encoder_lr_ratio": "adapter.lora_plus_ratio is the same everywhere",
    "split_qkv": "queries, keys and values are layers of their own anyway",
    "train_t5xxl": "T5 stays frozen",
    "train_llm_adapter": "there is no such adapter",
    "wd_on_output": "DoRA's magnitudes are of the outputs",
    "disable_conv_cp": "convolutions have two factors",
    "ggpo_sigma": "there is no such noise on the gradients",
    "ggpo_beta": "there is no such noise on the gradients",
    "verbose": "",
}


def put_network(given: Settings, *, is_flow: bool) -> None:
    """Kind, rank, alpha, convolutions and dropouts. Raises RecipeError for values of the wrong kind."""
    args = pairs_of(given.get("network_args"), "network_args")
    module, values = given.text("network_module"), given.draft.values
    kind, why, convs = _kind(module, args, is_flow=is_flow)
    if not kind:
        given.unsupported("network_module", "lora is taken; adapter.kind knows others")
        kind = "lora"
    elif why:
        given.changed("network_module", "adapter.kind", kind, why)
    elif given.has("network_module"):
        given.exactly("network_module", "adapter.kind", kind)
    values["adapter.kind"] = kind
    rank = _ranks(given, 4)
    _conv(given, args, rank, convs=convs and kind != "locon", is_flow=is_flow)
    if (left := _LEFT_OUT.get(args.get("preset", ""))) and _is_lycoris(module):
        kept = [one for one in left if not (trains_unet_alone(given) and one.startswith("text_encoder"))]
        values["adapter.layers"] = [{"pattern": one, "train": False} for one in kept]
    for key, option in (
        ("rank_dropout", "adapter.rank_dropout"),
        ("module_dropout", "adapter.module_dropout"),
    ):
        if key in args and (share := number_in(args[key], f"network_args {key}")):
            values[option] = share
    for key in ("loraplus_unet_lr_ratio", "loraplus_lr_ratio"):
        if key in args and (ratio := number_in(args[key], f"network_args {key}")):
            values["adapter.lora_plus_ratio"] = ratio
    if "rs_lora" in args and yes_in(args["rs_lora"], "rs_lora"):
        values["adapter.rslora"] = True
    _tell_args(given, args)


def _is_lycoris(module: str) -> bool:
    return "lycoris" in module or "locon" in module


def trains_unet_alone(given: Settings) -> bool:
    """Whether the text encoders are told to stay: by a switch, or by LyCORIS' preset."""
    preset = pairs_of(given.get("network_args"), "network_args").get("preset")
    by_preset = _is_lycoris(given.text("network_module")) and preset in _UNET_ALONE
    return by_preset or given.yes("network_train_unet_only")


def _kind(module: str, args: Mapping[str, str], *, is_flow: bool) -> tuple[str, str, bool]:
    """Ours, what differs, and whether convolutions are trained without their being asked for."""
    if _is_lycoris(module):
        algo = args.get("algo", "lora").lower()
        kind, why = _LYCORIS.get(algo, ("", ""))
        has_none = "conv_dim" in args and is_off(args["conv_dim"])
        convs = args.get("preset", "full") in _WITH_CONV and not has_none and not is_flow
        if kind == "lora" and yes_in(args.get("dora_wd", "false"), "dora_wd"):
            return "dora", why, convs
        return ("locon" if kind == "lora" and convs else kind), why, convs
    if not module or module.rpartition(".")[2] in ("lora", "lora_flux", "lora_sd3", "lora_fa", "dylora"):
        name = module.rpartition(".")[2]
        why = {"lora_fa": "both factors learn", "dylora": "all ranks together, not one at a time"}.get(
            name, ""
        )
        return "lora", why, False
    if module.rpartition(".")[2] in ("oft", "oft_flux"):
        return "oft", "the rank is the size of a block", False
    return "", "", False


def _ranks(given: Settings, usual: int) -> int:
    rank_key = "network_dim" if given.has("network_dim") else "network_rank"
    rank = given.whole(rank_key) or usual
    if rank > _LARGEST:
        given.changed(rank_key, "adapter.rank", _LARGEST, f"{rank} stands for a whole matrix there")
        rank = _LARGEST
    elif given.has(rank_key):
        given.exactly(rank_key, "adapter.rank", rank)
    given.draft.values["adapter.rank"] = rank
    alpha = given.number("network_alpha") if given.has("network_alpha") else 1.0
    if not alpha:  # as of LyCORIS and sd-scripts: none, or 0, is the rank
        given.changed("network_alpha", "adapter.alpha", float(rank), "0 is the rank there")
        return rank
    if given.has("network_alpha"):
        given.exactly("network_alpha", "adapter.alpha", alpha)
    given.draft.values["adapter.alpha"] = alpha
    return rank


def _conv(given: Settings, args: Mapping[str, str], rank: int, *, convs: bool, is_flow: bool) -> None:
    """Convolutions larger than 1 x 1; an alpha that is not given is 1, LyCORIS' that of the others."""
    said = whole_in(args["conv_dim"], "network_args conv_dim") if not is_off(args.get("conv_dim")) else 0
    wanted = bool(said) or convs
    values = given.draft.values
    if is_flow or not (wanted or values["adapter.kind"] == "locon"):
        return
    if values["adapter.kind"] != "locon":
        values["adapter.conv"] = True
    if said and said != rank:
        values["adapter.conv_rank"] = min(said, _LARGEST)
    alpha: Any = args.get("conv_alpha")
    if said and is_off(alpha):
        alpha = values.get("adapter.alpha", float(rank)) if _is_lycoris(given.text("network_module")) else 1.0
    if not is_off(alpha):
        values["adapter.conv_alpha"] = number_in(alpha, "network_args conv_alpha")


def _tell_args(given: Settings, args: Mapping[str, str]) -> None:
    """Each of network_args by its own name."""
    inner = Settings(given.draft, dict(args), prefix="network_args ", source=given.source)
    values = given.draft.values
    for key, option in (
        ("conv_dim", "adapter.conv_rank"),
        ("conv_alpha", "adapter.conv_alpha"),
        ("rank_dropout", "adapter.rank_dropout"),
        ("module_dropout", "adapter.module_dropout"),
        ("loraplus_unet_lr_ratio", "adapter.lora_plus_ratio"),
        ("loraplus_lr_ratio", "adapter.lora_plus_ratio"),
        ("rs_lora", "adapter.rslora"),
    ):
        if key in args and option in values:
            inner.exactly(key, option, values[option])
        elif key in args:
            inner.needless(key, "off" if is_off(args[key]) else "as the other layers")
    for key in ("algo", "dora_wd"):
        if key in args:
            inner.along(key, "adapter.kind")
    if args.get("preset") in _PRESETS:
        inner.along("preset", "adapter.conv, adapter.text_encoder and [[adapter.layers]]")
    elif "preset" in args:
        inner.unsupported("preset", _LAYERS)
    for key in ("use_cp", "use_tucker", "use_conv_cp"):
        inner.off_or(key, "convolutions have two factors")
    for key, why in _UNSUPPORTED.items():
        if key in args and key not in inner.told:
            inner.off_or(key, why or "nothing to take over", "-1", -1, "1" if key == "unit" else "-1")
    inner.finish({})
    if given.has("network_args"):
        given.in_parts("network_args")
