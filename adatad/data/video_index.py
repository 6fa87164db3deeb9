"""Index of a video file, read from its packets without decoding: how many frames, at which times, and whether a frame
can be reached from the key frame before it.

Packets tell the truth only in some files. A list of what is reliable, rather than of what is known to be wrong, errs
towards reading sequentially, which is slow and right (docs/decisions/decoders.md).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Discard

from adatad.data.timeline import REORDERED_FRAMES, Timeline, timeline_of
from adatad.errors import UserError
from adatad.files import read_start, what_it_is

INDEXED_CODECS = {
    "mov": ("h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg"),
    "matroska": ("h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg"),
    "avi": ("mpeg4", "mjpeg"),
}
"""Codecs, by container, of which each packet gives one frame and carries its time. VP8 isn't among them: some of its
packets are never shown."""
MIN_PACKET_BYTES = 24
"""A smaller MPEG-4 packet may stand for "as before" and give no frame."""
MIN_PRESENT_SHARE = 0.9
"""A file that holds a smaller share of the frames in its header is truncated."""
MISSING_SECONDS = 1.0
"""Seconds that may be missing besides that share."""
ZERO_START_CONTAINERS = ("mov", "matroska", "flv", "asf", "ogg")
"""Containers whose clock is 0 at the start of the video, whenever its first picture comes. Broadcast streams start at
any time, and AVI files shift the times of B-frames."""
CLOCK_SECONDS = 1e-3
"""Largest difference of two times that are equal."""
PROGRESSIVE_ORDERS = (0, 1)
"""Field orders (unknown, progressive) under which a packet isn't half a frame."""
CACHE_BYTES = 32 << 20
"""Most memory of indices that a process keeps; the last one stays in any case."""


class VideoError(UserError):
    """Raised for a video that can't be read; the message names the file."""


@dataclass
class Heartbeat:
    """Counter of work done, by which a waiting thread tells slow from stuck."""

    beats: int = 0


@dataclass(frozen=True)
class VideoIndex:
    """The best video stream of a file.

    stream: its number in the file; width, height: pixels as stored, before rotation; pts: int64 [frame_count], times of
    the frames in ticks of `tick_seconds`, ascending, where packets are reliable; key_pts: those of the packets at which
    decoding can start; timeline: when frames are shown, from the start of the video; stamp: `stamp_of` the file.

    Three texts say why something is wrong for this file, and are empty where it isn't: unreliable_because for packets
    as an index, libraries_unreliable_because for decord and torchcodec, decord_unreliable_because for decord.
    """

    path: Path
    frame_count: int
    stream: int
    width: int
    height: int
    tick_seconds: float
    pts: np.ndarray
    key_pts: np.ndarray
    unreliable_because: str
    libraries_unreliable_because: str
    decord_unreliable_because: str
    timeline: Timeline
    stamp: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory of the index."""
        return 1024 + self.pts.nbytes + self.key_pts.nbytes + self.timeline.seconds.nbytes


class Packet(NamedTuple):
    """A packet. pts, ticks: time and duration in ticks of its stream; is_key: decoding can start at it."""

    pts: int | None
    ticks: int
    size_bytes: int
    is_key: bool
    is_shown: bool


@dataclass
class Packets:
    """Packets of one stream in stored order.

    damaged: some came incomplete; last_seconds: latest time read of any stream; delay_seconds: time from decoding the
    first one to showing it.
    """

    packets: list[Packet] = field(default_factory=list)
    damaged: bool = False
    last_seconds: float = 0.0
    delay_seconds: float = 0.0


def open_container(path: Path) -> av.container.InputContainer:
    """Open a file with PyAV. Raises VideoError for what isn't a video."""
    if not path.exists():
        raise VideoError(f"{path}: there is no such file; add it, or take the video out of the annotation file")
    if not path.is_file():
        raise VideoError(f"{path}: can't be opened as a video: it is no file; correct data.videos or data.pattern")
    if not path.stat().st_size:
        raise VideoError(f"{path}: can't be opened as a video: it is empty (0 bytes); fetch it again")
    try:
        # Old AVI files hold metadata that isn't UTF-8, on which PyAV would raise.
        container = av.open(str(path), metadata_errors="ignore")
    except (OSError, av.FFmpegError) as error:
        # Plain words for common mistakes, such as an error page saved as a video.
        if what := what_it_is(read_start(path)):
            raise VideoError(f"{path}: can't be opened as a video: it is {what}") from error
        raise VideoError(
            f"{path}: can't be opened as a video ({error.strerror}): it is something else, or was cut off before its "
            "index; fetch it again"
        ) from error
    if "pipe" in container.format.name or container.format.name == "image2":
        container.close()
        raise VideoError(f"{path}: can't be opened as a video: it is a picture ({container.format.name})")
    if container.streams.best("video") is None:
        found = ", ".join(stream.type for stream in container.streams) or "nothing"
        container.close()
        raise VideoError(f"{path}: holds no video stream, only: {found}; fetch the video with its pictures")
    return container


def read_index(path: Path, heart: Heartbeat) -> VideoIndex:
    """Read every packet of a file, and decode every frame to count them where packets are unreliable.

    Cached in the process while the file stays as it is. Raises VideoError, which names the file.
    """
    key = (path, stamp_of(path))
    if key not in _indices:
        _indices[key] = _read_index(path, heart)
    _indices.move_to_end(key)
    while len(_indices) > 1 and sum(index.nbytes for index in _indices.values()) > CACHE_BYTES:
        _indices.popitem(last=False)
    return _indices[key]


# Least recently used first. A process reads windows of the same videos again in every epoch.
_indices: OrderedDict[tuple, VideoIndex] = OrderedDict()


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return size and time of change of a file, by which a replaced file is noticed; empty if there is none."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return ()
    return facts.st_size, facts.st_mtime_ns


def _read_index(path: Path, heart: Heartbeat) -> VideoIndex:
    # Before the file is opened: a change while it is read then shows as another stamp.
    stamp = stamp_of(path)
    with open_container(path) as container:
        stream = container.streams.best("video")
        found = _read_packets(container, stream, heart)
        _check_whole(path, container, stream, found)
        unreliable_because = _packets_unreliable_because(container, stream, found)
        tick = float(stream.time_base)
        # Slow, but right for every file: count the frames that really come out of the decoder.
        if unreliable_because:
            times, last = _frame_times(path, heart)
            pts, key_pts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        else:
            # Packets come in decoding order, frames are shown by their times.
            shown = [packet for packet in found.packets if packet.is_shown]
            pts = np.sort(np.array([packet.pts for packet in shown], np.int64))
            key_pts = np.sort(np.array([packet.pts for packet in found.packets if packet.is_key], np.int64))
            last = max(shown, key=lambda packet: packet.pts).ticks * tick if shown else 0.0
            times = pts * tick
        frames = len(times)
        if not frames:
            raise VideoError(f"{path}: holds no frames: its video stream is empty; fetch it again")
        libraries_unreliable_because = unreliable_because or _libraries_unreliable_because(stream, found)
        decord_unreliable_because = libraries_unreliable_because or _decord_unreliable_because(container, stream, found)
        size = stream.codec_context.width, stream.codec_context.height
        reasons = unreliable_because, libraries_unreliable_because, decord_unreliable_because
        timeline = timeline_of(times, _start_seconds(container, found), last)
        return VideoIndex(path, frames, stream.index, *size, tick, pts, key_pts, *reasons, timeline, stamp)


def _start_seconds(container: av.container.InputContainer, found: Packets) -> float | None:
    """Return the container's clock at the start of the video, as players take it; None for the first picture."""
    kind = container.format.name.split(",")[0]
    if container.start_time is None or kind == "avi":
        return None
    start = container.start_time / av.time_base
    # B-frames delay the first picture by a few frames; a longer delay is meant (sound comes first).
    return 0.0 if kind in ZERO_START_CONTAINERS and start > found.delay_seconds + CLOCK_SECONDS else start


def _read_packets(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, heart: Heartbeat
) -> Packets:
    found = Packets()
    # Matroska's header gives the length of the file, not of each stream, so truncation shows only by reading them all.
    read = list(container.streams) if "matroska" in container.format.name else [stream]
    # FFmpeg drops the packets of other streams before Python sees them.
    for other in container.streams:
        if other not in read:
            other.discard = Discard.all
    try:
        for packet in container.demux(*read):
            heart.beats += 1
            # PyAV ends each stream with an empty packet, which flushes decoders.
            if packet.pts is None and not packet.size:
                continue
            if packet.pts is not None:
                found.last_seconds = max(found.last_seconds, float(packet.pts * packet.time_base))
            if packet.stream is stream:
                if not found.packets and None not in (packet.pts, packet.dts):
                    found.delay_seconds = float((packet.pts - packet.dts) * packet.time_base)
                found.packets.append(
                    Packet(packet.pts, packet.duration or 0, packet.size, packet.is_keyframe, not packet.is_discard)
                )
                found.damaged |= packet.is_corrupt
    # What came before the damage may still be useful; who uses the packets decides.
    except av.FFmpegError:
        found.damaged = True
    return found


def _check_whole(
    path: Path, container: av.container.InputContainer, stream: av.video.stream.VideoStream, found: Packets
) -> None:
    """Raise VideoError for a file of which a good part is missing, if its header says how long it should be."""
    count, kind = len(found.packets), container.format.name
    # An edit list leaves frames out of an MP4's index, so the header's count is no measure there.
    # A truncated file lists more frames in its header than it holds.
    listed = len(stream.index_entries) if "mov" in kind else stream.frames
    if count < MIN_PRESENT_SHARE * listed or (found.damaged and "mov" in kind and count < listed):
        raise VideoError(f"{path}: is cut off: it lists {listed} frames and holds about {count}; fetch it again")
    # FFmpeg only estimates the length of other containers.
    whole_seconds = (container.duration or 0) / av.time_base if "matroska" in kind else 0.0
    if found.last_seconds < MIN_PRESENT_SHARE * whole_seconds - MISSING_SECONDS:
        raise VideoError(
            f"{path}: is cut off: it should last {whole_seconds:.1f} s, and holds {count} frames up to "
            f"{found.last_seconds:.1f} s; fetch it again"
        )


def _packets_unreliable_because(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, found: Packets
) -> str:
    """Return why frames can't be counted and reached by packets; empty if they can."""
    context, packets = stream.codec_context, found.packets
    kind, codec = container.format.name.split(",")[0], context.codec.canonical_name
    times = [packet.pts for packet in packets]
    if codec not in INDEXED_CODECS.get(kind, ()):
        return f"{codec} in {kind} isn't counted by packets"
    # A rule for each kind of file in which packets were seen not to match the decoded frames.
    if kind == "avi" and context.has_b_frames:
        return "an AVI file with B-frames shifts their times"
    if codec == "mpeg4" and any(packet.size_bytes < MIN_PACKET_BYTES for packet in packets):
        return "some of its packets may hold no frame"
    # Interlaced streams may store each field as a packet of its own.
    if context.field_order not in PROGRESSIVE_ORDERS:
        return "it is interlaced"
    if None in times or len(set(times)) < len(times):
        return "some of its packets carry no time of their own"
    if not packets or not packets[0].is_key:
        return "it doesn't begin with a key frame"
    # B-frames are stored a few places from where they are shown; times that start again lie far apart.
    order = np.argsort(times, kind="stable")
    if np.abs(order - np.arange(len(order))).max() > REORDERED_FRAMES:
        return "its times start again"
    return ""


def _libraries_unreliable_because(stream: av.video.stream.VideoStream, found: Packets) -> str:
    """Return what decord and torchcodec are both known to get wrong in such a file; empty if nothing."""
    context = stream.codec_context
    # Conversions to RGB agree between the libraries only for these formats with even sides.
    if context.pix_fmt not in ("yuv420p", "yuvj420p", "yuv444p"):
        return f"colours of {context.pix_fmt} differ between libraries"
    if context.width % 2 or context.height % 2:
        return "colours differ between libraries where a side is odd"
    # The libraries don't apply an edit list as FFmpeg does, and number other frames.
    if not all(packet.is_shown for packet in found.packets):
        return "an edit list cuts frames away"
    return ""


def _decord_unreliable_because(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, found: Packets
) -> str:
    """Return what decord alone is known to get wrong, as far as packets show it; empty if nothing."""
    codec = stream.codec_context.codec.canonical_name
    if codec not in ("h264", "hevc", "mpeg4", "mjpeg"):
        return f"decord isn't known to decode {codec}"
    # It may decode another one than the best, which is ours.
    if len(container.streams.video) > 1:
        return "it has several video streams"
    if _has_leading_frames(found.packets):
        return "decord is off after a key frame that earlier frames follow (open GOP)"
    return ""


def _has_leading_frames(packets: list[Packet]) -> bool:
    """Return whether frames stored after a key frame are shown before it."""
    key_pts = packets[0].pts
    for packet in packets:
        if packet.is_key:
            key_pts = packet.pts
        elif packet.pts < key_pts:
            return True
    return False


def _frame_times(path: Path, heart: Heartbeat) -> tuple[list[float | None], float]:
    """Decode everything, since some packets give no frame.

    Returns the seconds of each frame, None where the file gives none, and the duration of the last one, 0 if unknown.
    Raises VideoError if decoding ends before the file does.
    """
    times: list[float | None] = []
    last = 0.0
    with open_container(path) as container:
        stream = container.streams.best("video")
        # One thread: loader processes run side by side, and threads change when errors surface.
        stream.thread_type = "NONE"
        try:
            for frame in container.decode(stream):
                heart.beats += 1
                times.append(frame.time)
                last = float(frame.duration * frame.time_base) if frame.duration else 0.0
        except av.FFmpegError as error:
            raise VideoError(
                f"{path}: only {len(times)} frames could be decoded ({error.strerror}); fetch it again"
            ) from error
    return times, last
