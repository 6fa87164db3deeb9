"""The data section of a spec: videos, windows, augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from adatad.spec.numbers import Count, Float, Fraction, Length, NonNegative, Rate, Seconds, Size
from adatad.spec.section import Section


class WindowSpec(Section):
    """How a video becomes windows, each a grid of positions: `stride_frames` video frames apart, or the whole video in
    equal parts."""

    kind: Literal["sliding", "resize"] = "sliding"
    """sliding: parts of a video, at random in training, one after another at evaluation; resize: each video whole,
    `size_grid` positions long (ActivityNet), where only the first two sizes below count."""
    # Defaults of this section are THUMOS-14's.
    size_grid: Length = 768
    """Positions of a window; the detector's time axis."""
    frames_per_position: Length = 1
    """Frames decoded for one position (OpenTAD's scale_factor)."""
    stride_frames: Length = 4
    """Video frames from one position to the next (OpenTAD's snippet stride)."""
    overlap: Rate = 0.5
    """Share of a window that the next one repeats, at evaluation."""
    min_visible: Fraction = 0.5
    """In training, an instance cut by the window stays if at least this share of it is inside."""
    crop_ratio: tuple[Fraction, Fraction] | None = None
    """In training, videos shorter than a window are cut to a random share of their length between these two."""
    offset_frames: Count = 0
    """Video frames by which position 0 of a video lies later in time than its first frame (features of other
    projects); it moves labels and detections, not the frames that are decoded."""


class ColorJitterSpec(Section):
    """Largest changes of a frame's colors; 0 leaves that one alone."""

    brightness: NonNegative = 0.5
    """Factors are drawn from 1 - this to 1 + this; so with contrast and saturation."""
    contrast: NonNegative = 0.5
    saturation: NonNegative = 0.5
    # Half a turn reaches every color; more would only come round again.
    hue: Annotated[Float, Field(ge=0.0, le=0.5)] = 0.1
    """Turns of the color circle to either side, as a share of 255 steps of two degrees: 0.1 is 50 degrees."""


class AugmentSpec(Section):
    """How training frames are changed at random: all frames of a sample alike, and otherwise in each epoch."""

    crop_short_side_pixels: Length | None = None
    """Resize the short side to this, cut a random part out and resize that to `size_pixels`; null: the centre."""
    flip: Fraction = 0.0
    """Probability of left and right being exchanged; 0 where that would make another action of one."""
    rand_augment: bool = False
    """Two of fifteen operations on colors and shape, as in the reference."""
    color_jitter: ColorJitterSpec | None = None
    """Brightness, contrast, saturation and hue, in random order; {} takes the reference's strengths."""


class DataSpec(Section):
    """Videos and labels, and how they become batches."""

    root: str | None = None
    """Folder that relative paths of `annotations`, `classes`, `blocked_videos`, `videos` and `features` start
    from. Loading puts it into them and leaves null here."""
    annotations: str
    """JSON file in the ActivityNet / OpenTAD form, or that file gzip'd."""
    classes: str | tuple[str, ...] | None = None
    """Text file with one label a line (or `id<TAB>label`, where annotations hold ids), or the list itself; null: sorted
    labels of the annotation file."""
    class_count: Size | None = None
    """Classes that there must be, so that another list of them isn't taken unseen; null: as many as there are."""
    label_key: str = "label"
    """Key of an annotation that holds its label (EPIC-KITCHENS: verb or noun)."""
    blocked_videos: str | tuple[str, ...] | None = None
    """Videos that are left out everywhere: a text file with one name a line, a JSON list, or the list itself."""
    # Three values: only null can follow `compat`, so that a user's own true or false holds under both.
    filter_short: bool | None = None
    """Don't train on instances that are shorter than a frame (resize: no longer than 1 % of their video); null: so it
    is, but under `compat: reference` with resize alone."""
    videos: str
    """Folder of the video files."""
    features: str | None = None
    """Folder of features of `adatad extract` that are read in place of the videos (`model.backbone.mode: features`,
    docs/features.md); null: videos."""
    pattern: str = "{name}.mp4"
    """File name of a video in that folder; {name}, which stands in it once, is its name in the annotation file."""
    train_subset: str | tuple[str, ...] = "training"
    """Subset of the annotation file, or several, that is trained on."""
    validation_subset: str | tuple[str, ...] = "validation"
    """Subset of the annotation file, or several, that is evaluated."""
    # No video has less than 1e-6; as a divisor it keeps numbers of frames finite.
    fps: Annotated[Float, Field(ge=1e-6, le=1e6)] | None = None
    """Frames per second of every video; null: `frame` / `duration` of the annotation file, or its `fps`."""
    time: Literal["presentation", "count"] | None = None
    """presentation: the frames of a second are those that the file shows then, whatever its rate; count: frames are
    counted as if they came evenly, which is wrong where they don't; null: presentation, but under `compat: reference`
    count."""
    window: WindowSpec = WindowSpec()
    size_pixels: Length = 160
    """Height and width of a frame: the short side is resized to it and the centre cut out."""
    augment: AugmentSpec | None = None
    """Random changes of training frames; null: none."""
    # The fastest at every size; the reference reads with decord, which shows the same (docs/decisions/decoders.md).
    decoder: Literal["decord", "pyav", "torchcodec"] = "pyav"
    """Library that decodes the videos; PyAV takes its place where it isn't installed or is known to be wrong."""
    decode_timeout_seconds: Seconds = 120.0
    """Longest wait for a video to open, or for one more frame of it; after it a second try is made, then it is an
    error."""
    # More than a thousand is a slip, and would start that many processes.
    workers: Annotated[Count, Field(le=1_000)] = 2
    """Loader processes of each rank; 0 decodes in the training process."""
    stage_to: str | None = None
    """Folder on each machine's own disk that videos are copied to before training, such as $TMPDIR/videos, filled in on
    that machine; null: they are read where they are."""
    on_error: Literal["raise", "skip"] = "raise"
    """A video that can't be read: raise ends the run; skip trains on the next one instead, and finds nothing in it at
    evaluation. Each is logged once."""
    skip_limit: Count = 10
    """on_error skip: videos that may be left out before the run ends all the same."""
