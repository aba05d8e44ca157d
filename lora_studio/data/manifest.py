"""What was found in the folder of images, and what becomes of each file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

CropMode = Literal["centre", "random", "focus"]
FOLDER_NAME = "folder name"  # who wrote a caption that is the name of a `<repeats>_<name>` folder
INSTANCE_PROMPT = "instance prompt"  # likewise: that is the recipe's, for images without one


@dataclass(frozen=True, slots=True)
class Bucket:
    """A size in pixels that images share in a batch; both sides are multiples of the family's stride."""

    width: int
    height: int

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def area(self) -> int:
        return self.width * self.height


@dataclass(frozen=True)
class View:
    """One way to show an image: resized, perhaps mirrored, then cropped. Each has a latent of its own."""

    resolution: int  # side of a square of about the bucket's area; less than asked if the image is small
    bucket: Bucket
    resize: tuple[int, int]  # width, height before the crop
    crop: tuple[int, int, int, int]  # left, top, right, bottom within the resized (and mirrored) image
    flip: bool = False  # mirrored: left and right change places


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a line of metadata.jsonl or .csv says about its own image; None: as [data] says for all."""

    repeats: int | None = None
    weight: float | None = None
    flip: float | None = None  # share of showings that are mirrored, 0 to 1
    bucket: tuple[int, int] | None = None  # width, height
    crop: CropMode | None = None
    region: tuple[int, int, int, int] | None = None  # left, top, right, bottom in pixels: all that is shown
    focus: tuple[float, float] | None = None  # shares of width and height, from the left and the top


@dataclass(frozen=True, slots=True)
class Record:
    """One file found: an image that is used, or the reason why it is not."""

    path: str  # absolute, as found
    name: str  # relative to the source folder
    sha256: str = ""  # of the file's bytes; empty if they were not read
    width: int = 0  # pixels, after EXIF orientation; 0 if not decoded
    height: int = 0
    caption: str = ""
    lines: tuple[str, ...] = ()  # several captions, one a line of its file; `caption` is then all of them
    captioned_by: str = ""
    trigger: str = ""  # the words that call what it shows, and what that is one of
    class_words: str = ""
    role: str = "instance"  # trained on; or prior: a regularization image; or validation: measured only
    repeats: int = 1
    weight: float = 1.0
    background: str = ""  # the colour that clear parts get; empty if there are none
    mask: str = ""  # name of the file that says which parts are learned, or masks.OWN; empty: all of it
    mask_path: str = ""  # absolute, as found
    mask_sha256: str = ""  # of the mask file's bytes
    note: str = ""  # what a user should know about how it was read
    overrides: Overrides = Overrides()
    # The first way to show it, field for field as in View; `more_views` are those of other areas, other
    # crops and mirrored ones.
    resolution: int = 0
    bucket: Bucket | None = None
    resize: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None
    flip: bool = False
    flip_share: float = 0.0  # share of showings that are mirrored
    more_views: tuple[View, ...] = ()
    excluded: str = ""  # the reason; empty means used

    def to_json(self) -> str:
        """One line without the paths, which are private and differ between machines."""
        fields = {key: value for key, value in asdict(self).items() if key not in ("path", "mask_path")}
        fields["bucket"] = self.bucket and self.bucket.name
        fields["more_views"] = [asdict(view) | {"bucket": view.bucket.name} for view in self.more_views]
        fields["overrides"] = {key: value for key, value in fields["overrides"].items() if value is not None}
        line = json.dumps(fields, ensure_ascii=False)
        # A file name that is no UTF-8 holds lone surrogates; written as \udcXX they are still valid JSON.
        return line.encode("utf-8", "backslashreplace").decode("utf-8")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Record:
        """From the values of a line; without the paths, which stand in none."""
        values = _with_tuples(current_line(fields)) | {"path": "", "bucket": _bucket(fields["bucket"])}
        values["overrides"] = Overrides(**_with_tuples(fields["overrides"]))
        values["more_views"] = tuple(
            View(**_with_tuples(view) | {"bucket": _bucket(view["bucket"])}) for view in fields["more_views"]
        )
        return cls(**values)


@dataclass(frozen=True)
class Manifest:
    """All files found, source by source, in the order of their names."""

    records: tuple[Record, ...]

    @property
    def used(self) -> tuple[Record, ...]:
        """The images that are trained on; micro-batches hold indices into this."""
        return self.of_role("instance")

    def of_role(self, role: str) -> tuple[Record, ...]:
        """The usable images of a role: instance, prior or validation."""
        return tuple(record for record in self.usable if record.role == role)

    @property
    def usable(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if not record.excluded)

    @property
    def excluded(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.excluded)

    def to_jsonl(self) -> str:
        """One JSON line per file found; equal folders give equal text."""
        return "".join(record.to_json() + "\n" for record in self.records)


def current_line(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A line's values, with the present name of its role if an earlier version wrote it."""
    from lora_studio.recipe.renamed import ROLES  # brings pydantic, which --help does without

    return {**fields, "role": ROLES.get(fields["role"], fields["role"])}


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _bucket(name: str | None) -> Bucket | None:
    return None if name is None else Bucket(*map(int, name.split("x")))
