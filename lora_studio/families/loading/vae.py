"""Another VAE for a base: a diffusers folder, or a single file of such a one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families.loading.folder import load_network, weight_files

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def load_vae(name: str, own: AutoencoderKL) -> AutoencoderKL:
    """The VAE at the path `name`, in float32, to take the place of the base's `own`.

    A single file has no configuration and gets that of `own`. Raises BaseModelError if it cannot be read, or
    makes other latents than those the base was trained on.
    """
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            vae = _of_folder(path)
        elif path.suffix == ".safetensors" and path.is_file():
            vae = _of_file(path, own)
        else:
            raise BaseModelError(
                f"there is no VAE at base.vae = {name!r}; give a folder of a diffusers VAE (one that holds "
                "config.json and safetensors), or its .safetensors file."
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"the VAE {name} cannot be loaded: {reason_of(error)}.") from None
    _check_latents(name, vae, own)
    return vae


def vae_files(name: str) -> list[Path]:
    """The files that `load_vae` reads the weights from."""
    path = Path(name).expanduser()
    return weight_files(path) if path.is_dir() else [path] if path.is_file() else []


def _of_folder(path: Path) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return load_network(AutoencoderKL, path)


def _of_file(path: Path, own: AutoencoderKL) -> AutoencoderKL:
    """Raises ValueError if its tensors are not named as those of `own`."""
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    vae = AutoencoderKL.from_config(own.config)
    unlike = sorted(tensors.keys() ^ vae.state_dict().keys())
    if unlike:
        raise ValueError(
            f"{len(unlike)} of its tensors are not those of a diffusers VAE as the base's, first {unlike[0]}"
        )
    vae.load_state_dict(tensors)
    return vae.float()


def _check_latents(name: str, vae: AutoencoderKL, own: AutoencoderKL) -> None:
    """A VAE of another family would train without complaint on latents that the UNet cannot read."""
    for key, called in (("latent_channels", "channels"), ("scaling_factor", "scale")):
        other, wanted = vae.config[key], own.config[key]
        if other != wanted:
            raise BaseModelError(
                f"the VAE {name} makes latents of another kind: their {called} is {other}, the base's "
                f"{wanted}; take one that was made for this family of bases."
            )
    if len(vae.config.block_out_channels) != len(own.config.block_out_channels):
        raise BaseModelError(
            f"the VAE {name} makes latents of another size than the base's; take one that was made for this "
            "family of bases."
        )
