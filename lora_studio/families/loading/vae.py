"""Another VAE in the place of a base's own: a folder, a file in either layout, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families import vaes
from lora_studio.families.configuration import contradiction, fault_of, read_json
from lora_studio.families.fingerprints import Stamp, stamps_of
from lora_studio.families.loading.folder import (
    empty_network,
    fill_from_folder,
    stored_part,
    weight_files,
)
from lora_studio.families.loading.hub import hub_vae, is_hub_id
from lora_studio.families.loading.single_file import empty_part
from lora_studio.families.original.checkpoint import Checkpoint, open_checkpoint
from lora_studio.families.original.names import VAE_PREFIXES, VAE_STARTS, vae_origins
from lora_studio.families.original.transformers.configurations import vae_sizes
from lora_studio.families.stored import StoredPart, shapes_of, squeezed, stored_in
from lora_studio.files import expanded
from lora_studio.tensor_file import FILE_ENDINGS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CONFIG, SUBFOLDER = "config.json", "vae"
# How names begin in the original layout alone, of an image's VAE and of a video's.
_ORIGINAL = ("encoder.down.", "decoder.up.", "encoder.downsamples.", "decoder.upsamples.")
_TRIED_SIDE = 64  # pixels
_FIRST = "decoder.conv_in.weight"  # reads the latents; of the same name in both layouts


class LoadedVae(NamedTuple):
    part: AutoencoderKL
    stored: StoredPart
    stamps: Mapping[Path, Stamp]


def load_vae(name: str, own: AutoencoderKL, *, allow_pickle: bool = False) -> LoadedVae:
    """The VAE called `name`, in float32, to take the place of the base's `own`.

    A folder of a VAE or of a whole base, a .safetensors file in diffusers' or the original layout, alone or
    in a whole checkpoint, or the id of a repository that has one at its top or as its part `vae`. A file has
    no configuration and gets that of `own`. Raises BaseModelError if it cannot be read, is no VAE, or makes
    other latents than those the base was trained on.
    """
    path = expanded(name)
    if is_hub_id(name) and path.suffix not in FILE_ENDINGS:
        path = hub_vae(name)
    try:
        if path.is_dir():
            return _of_folder(name, path, own)
        if path.suffix in FILE_ENDINGS and path.is_file():
            return _of_file(name, path, own, allow_pickle=allow_pickle)
    except BaseModelError:
        raise
    except Exception as error:  # libraries meet a configuration that somebody made up with any error
        raise BaseModelError(f"the VAE {name} cannot be loaded: {reason_of(error)}.") from None
    raise BaseModelError(
        f"there is no VAE at base.vae = {name!r}; give a folder of a diffusers VAE (one that holds {CONFIG} "
        "and safetensors), a .safetensors file, or the id of one on the hub."
    )


def _of_folder(name: str, folder: Path, own: AutoencoderKL) -> LoadedVae:
    import torch

    from lora_studio.families.loading.trial import try_vae

    folder = folder if (folder / CONFIG).is_file() else folder / SUBFOLDER
    configuration = read_json(folder / CONFIG)
    kind = configuration.get("_class_name", "AutoencoderKL")
    if kind != (wanted := type(own).__name__):
        raise ValueError(f"it is of the kind {kind}, not {wanted} as the base's")
    stamps, files = stamps_of(weight_files(folder)), map(open_checkpoint, weight_files(folder))
    shapes = {key: one for file in files for key, one in file.shapes.items()}
    for look in (contradiction, fault_of):
        if fault := look(SUBFOLDER, configuration, shapes):
            raise ValueError(f"its {CONFIG} {fault}")
    vae: Any = empty_network(type(own), folder)
    _check_latents(name, vae.config, own)
    try_vae(vae, _TRIED_SIDE)
    return LoadedVae(vae, fill_from_folder(vae, folder, torch.float32), stamps)


def _of_file(name: str, path: Path, own: AutoencoderKL, *, allow_pickle: bool) -> LoadedVae:
    """Raises ValueError if its tensors are not those of a VAE built as `own`."""
    import torch

    stamps, file = stamps_of([path]), open_checkpoint(path, allow_pickle=allow_pickle)
    prefix = next((one for one in VAE_PREFIXES if _starts(file, one)), "")
    if strange := [one for one in file.shapes if not prefix and not one.startswith((*VAE_STARTS, *_BESIDE))]:
        raise ValueError(f"{len(strange)} of its tensors are not those of a VAE, first {strange[0]}")
    reads = file.shapes.get(prefix + _FIRST, ())
    latents = {"latent_channels": reads[1]} if len(reads) == 4 else {}
    sizes: dict[str, Any] = {}
    if next(own.parameters()).is_meta:  # of a transformer without one: sizes that are assumed
        sizes = vae_sizes({one.removeprefix(prefix): shape for one, shape in file.shapes.items()})
    said = {key: value for key, value in own.config.items() if not key.startswith("_")}  # not of defaults
    vae: Any = empty_part("vae", {"_class_name": type(own).__name__, **said, **sizes, **latents})
    _check_latents(name, vae.config, own)
    stored = _stored(vae, file, prefix)
    stored.fill(vae, torch.float32, copies=True)
    return LoadedVae(vae, stored, stamps)


def _starts(file: Checkpoint, prefix: str) -> bool:
    return any(one.startswith(prefix) and one.startswith(VAE_STARTS, len(prefix)) for one in file.shapes)


_BESIDE = ("loss.", "model_ema.")  # what training leaves in a VAE's file


def _stored(vae: AutoencoderKL, file: Checkpoint, prefix: str) -> StoredPart:
    if not any(one.startswith(tuple(prefix + start for start in _ORIGINAL)) for one in file.shapes):
        return stored_part(vae, dict.fromkeys(file.shapes, file))
    found = vae_origins(file.shapes, vae.config)
    if missing := sorted(shapes_of(vae).keys() - found.keys()):
        raise ValueError(f"it lacks {len(missing)} tensors of a VAE built as the base's, first {missing[0]}")
    return stored_in(file, vae, found).checked(squeezed)


_SCALES = {
    **{"latent_channels": "channels", "z_dim": "channels", "scaling_factor": "scale"},
    **{"shift_factor": "shift", "latents_mean": "shift", "latents_std": "scale"},
}


def _check_latents(name: str, config: Mapping[str, Any], own: AutoencoderKL) -> None:
    """A VAE of another family would train without complaint on latents that the UNet cannot read."""
    fault = ""
    for key, called in _SCALES.items():
        other, wanted = config.get(key), own.config.get(key)
        if other != wanted and not fault:
            fault = f"of another kind: their {called} is {other!s:.60}, the base's {wanted!s:.60}"
    if not fault and vaes.pixels_per_latent(config) != vaes.pixels_per_latent(own.config):
        fault = "of another size than the base's"
    if fault:
        advice = "take one that was made for this family of bases"
        raise BaseModelError(f"the VAE {name} makes latents {fault}; {advice}.")
