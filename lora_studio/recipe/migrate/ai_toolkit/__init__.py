"""ai-toolkit's YAML or JSON: a job with one process that trains a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.recipe.migrate.ai_toolkit.datasets import put_datasets
from lora_studio.recipe.migrate.ai_toolkit.train import put_train
from lora_studio.recipe.migrate.draft import ALL_THERE_IS, Draft, Settings, each, idle, rules
from lora_studio.recipe.migrate.folders import Places
from lora_studio.recipe.migrate.meanings import put_dtype, put_files, put_name, put_quantization, scale_note

TITLE = "ai-toolkit"
_FLOWS = ("flux", "sd3", "chroma", "zimage", "z_image", "flex", "qwen", "lumina", "hidream", "wan", "omnigen")


def is_job(content: Mapping[str, Any]) -> bool:
    """Whether it is a job of ai-toolkit."""
    config = content.get("config")
    return isinstance(config, dict) and isinstance(config.get("process"), list)


def take(draft: Draft, places: Places, options: Mapping[str, Any], *, source: str) -> None:
    """All keys of a job. Raises RecipeError for several processes, wrong values and missing folders."""
    if not is_job(options):
        raise RecipeError(f"{source} is no job of ai-toolkit: it has no config with a process.")
    job = Settings(draft, options, source=source)
    config = Settings(draft, options["config"], prefix="config.", source=source)
    processes = [one for one in config.values["process"] if isinstance(one, dict)]
    if len(processes) != 1:
        raise RecipeError(f"{source} has {len(processes)} processes; keep one of them.")
    (process,) = processes
    if "train" not in process or "model" not in process:
        raise RecipeError(f"{source} trains nothing: its process is {process.get('type')!r}.")
    put_name(config, "name") if config.has("name") else None
    config.in_parts("process")
    given = Settings(draft, process, prefix="process.", source=source)
    tables = {
        name: _table(given, name) for name in ("network", "save", "train", "model", "sample", "logging")
    }
    model = tables["model"]
    arch = model.text("arch").lower()
    draft.is_flow = model.yes("is_flux") or model.yes("is_v3") or any(one in arch for one in _FLOWS)
    _model(model, places)
    _network(tables["network"])
    put_train(tables["train"])
    views = put_datasets(given, places, process.get("datasets"))
    _sample(tables["sample"], given.text("trigger_word"))
    _logging(tables["logging"])
    _save(tables["save"])
    for name in ("network", "train", "model", "sample"):
        tables[name].finish(rules("ai_toolkit", name))
    given.finish(rules("ai_toolkit", "process"))
    config.finish({})
    job.in_parts("config")
    job.finish(each("job meta", idle("of ai-toolkit's job")))
    _in_optimizer_steps(tables["train"])
    batch = draft.values.get("training.batch_size", 1)
    if views:
        shown = draft.values.get("training.steps", 0) * batch / views
        draft.notes.append(f"each of the images that are here is shown about {shown:.0f} times")
    if note := scale_note(draft):
        draft.notes.append(note)


def _in_optimizer_steps(train: Settings) -> None:
    """What counts their steps, where these are micro-batches."""
    if (each_step := train.whole("gradient_accumulation_steps") or 1) > 1:
        for option in ("training.checkpoint_every", "samples.every"):
            if option in train.draft.values:
                train.draft.values[option] = max(1, round(train.draft.values[option] / each_step))
        train.draft.notes.append(
            f"counts of steps are divided by {each_step}, micro-batches of an optimizer step"
        )


def _table(given: Settings, name: str) -> Settings:
    found = given.get(name)
    if name in given.values:
        given.in_parts(name)
    return Settings(
        given.draft, found if isinstance(found, dict) else {}, prefix=f"{name}.", source=given.source
    )


def _model(model: Settings, places: Places) -> None:
    files = {
        "name_or_path": "base.model",
        "vae_path": "base.vae",
        "assistant_lora_path": "base.training_adapter",
    }
    put_files(model, places, files)
    if model.text("lora_path"):
        model.exactly("lora_path", "base.loras", [{"file": places.file(model.text("lora_path"))[0]}])
    if model.yes("is_v_pred"):
        model.exactly("is_v_pred", "base.prediction_type", "v_prediction")
    elif "is_v_pred" in model.values:
        model.needless("is_v_pred", "off")
    if model.has("dtype"):
        put_dtype(model, "dtype", "base.dtype")
    if model.has("quantize") or model.has("qtype"):
        put_quantization(model, "quantize", model.text("qtype") or "qfloat8", off=not model.yes("quantize"))
        if "qtype" in model.values:
            model.along("qtype", "base.quantize")


def _network(network: Settings) -> None:
    """Rank and alpha of linear layers, and of convolutions where there is one."""
    values, kind = network.draft.values, network.text("type").lower() or "lora"
    if kind in ("lora", "locon", "lokr", "dora"):
        network.exactly("type", "adapter.kind", "lora" if kind == "locon" else kind)
    else:
        network.unsupported("type", "lora is taken; adapter.kind knows others")
    key = "rank" if network.has("rank") else "linear"
    rank = network.whole(key) or 4
    full = network.yes("lokr_full_rank")
    if rank > 4096 or full:
        network.moved(key, "a whole matrix there; adapter.rank is at most 4096")
        rank = min(rank, 4096)
    elif network.has(key):
        network.exactly(key, "adapter.rank", rank)
    if key == "rank" and network.has("linear"):
        network.first("linear", "rank")
    alpha_key = "linear_alpha" if network.has("linear_alpha") else "alpha"
    alpha = network.number(alpha_key) or 1.0
    if alpha > 65_504:
        alpha = float(rank)
    if network.has(alpha_key):
        network.exactly(alpha_key, "adapter.alpha", alpha)
    if alpha_key == "linear_alpha" and network.has("alpha"):
        network.first("alpha", "linear_alpha")
    values |= {"adapter.rank": rank, "adapter.alpha": alpha}
    conv = network.whole("conv") or 0
    if conv and not network.draft.is_flow:
        network.exactly("conv", "adapter.conv_rank", min(conv, 4096))
        values["adapter.conv"] = True
        values["adapter.conv_alpha"] = network.number("conv_alpha") or float(conv)
    for key in ("conv", "conv_alpha"):
        if key in network.values and key not in network.told:
            network.along(key, "adapter.conv") if conv and not network.draft.is_flow else network.needless(
                key, "such a base has no convolutions" if network.draft.is_flow else "off"
            )


def _save(save: Settings) -> None:
    if save.has("dtype"):
        put_dtype(save, "dtype", "export.dtype")
    elif save.has("save_dtype"):
        put_dtype(save, "save_dtype", "export.dtype")
    save.finish(rules("ai_toolkit", "save"))


def _logging(logging: Settings) -> None:
    if logging.yes("use_wandb"):
        logging.exactly("use_wandb", "tracking.to", ["wandb"])
        for key, option in (("project_name", "tracking.project"), ("run_name", "tracking.run_name")):
            if logging.has(key):
                logging.exactly(key, option, logging.text(key))
    logging.finish(
        each("use_wandb log_every verbose use_ui_logger project_name run_name", idle(ALL_THERE_IS))
    )


def _sample(sample: Settings, trigger: str) -> None:
    """Prompts, [trigger] filled in."""
    listed = sample.get("samples") or sample.get("prompts") or []
    listed = listed if isinstance(listed, list) else [listed]
    texts = [one.get("prompt", "") if isinstance(one, dict) else one for one in listed]
    prompts = [" ".join(str(one).replace("[trigger]", trigger).split()) for one in texts]
    found = [one for one in prompts if one]
    if found:
        sample.draft.values["samples.prompts"] = found
    for key in ("prompts", "samples"):
        if key in sample.values:
            sample.exactly(key, "samples.prompts", found) if found else sample.needless(key, "empty")
    if sample.text("neg"):
        sample.exactly("neg", "samples.negative_prompt", sample.text("neg"))
    elif "neg" in sample.values:
        sample.needless("neg", "empty")
    for key, option in (
        ("seed", "samples.seed"),
        ("sample_steps", "samples.steps"),
        ("sample_every", "samples.every"),
    ):
        if sample.has(key):
            sample.exactly(key, option, max(0, sample.whole(key) or 0))
    if sample.has("guidance_scale"):
        said = sample.number("guidance_scale") or 1.0
        if said < 1:
            sample.changed("guidance_scale", "samples.guidance", 1.0, "1 is none")
        else:
            sample.exactly("guidance_scale", "samples.guidance", said)
