"""The norms of a file's changes as bars, a block each."""

from __future__ import annotations

from collections.abc import Mapping

from lora_studio.training.plots import drawing, png_bytes


def norm_plot(norms: Mapping[str, float | None], title: str) -> bytes:
    """A PNG: text encoders above, the UNet below, each as far as it is in the file.

    A block whose change is not known without the base has no bar.
    """
    encoders = {block: norm for block, norm in norms.items() if " layer " in block}
    unet = {block: norm for block, norm in norms.items() if block not in encoders}
    groups = [(name, one) for name, one in (("text encoders", encoders), ("UNet", unet)) if one]
    pyplot = drawing()
    figure, axes = pyplot.subplots(
        max(len(groups), 1),
        1,
        figsize=(9, 1 + 2.6 * max(len(groups), 1)),
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, blocks) in zip(axes[:, 0], groups, strict=False):
        places = range(len(blocks))
        axis.bar(places, [norm or 0.0 for norm in blocks.values()], color="#1f4e9c", width=0.75)
        labels = [block.replace(" layer ", " ") for block in blocks]
        axis.set_xticks(places, labels, rotation=90 if len(blocks) > 14 else 0, fontsize=8)
        axis.set_ylabel("norm of the change")
        axis.set_title(name, fontsize=10, loc="left")
        axis.margins(x=0.01)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    # a file's name may hold a dollar sign, with which matplotlib begins a formula
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    return png_bytes(figure)
