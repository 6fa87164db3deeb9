"""Files that other libraries write are read: what they call a start, an end and a label is the same."""

from __future__ import annotations

from datetime import timedelta

import srt
import webvtt
from hypothesis import HealthCheck, given, settings
from label_samples import close, segments
from pympi import Eaf

from adatad.labels.forms import read_labels
from adatad.labels.records import Segment, VideoLabels

ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def disjoint(rows):
    """Return one after the other of segments, as a tier of ELAN must be."""
    return tuple(
        Segment(row.label, 10.0 * n, 10.0 * n + min(9.0, row.end_seconds - row.start_seconds))
        for n, row in enumerate(rows)
    )


@ONE_FOLDER
@given(rows=segments(with_scores=False).map(disjoint))
def test_documents_of_pympi(rows, tmp_path):
    document = Eaf()
    document.add_linked_file("file:///data/my%20clip.mp4", mimetype="video/mp4")
    for row in rows:
        document.add_annotation(
            "default", round(row.start_seconds * 1000), round(row.end_seconds * 1000), value=row.label
        )
    # It opens a file with these rights, and warns where one is there.
    (tmp_path / "k.eaf").unlink(missing_ok=True)
    document.to_file(str(tmp_path / "k.eaf"))
    (video,) = read_labels(tmp_path / "k.eaf", labels_from="values")
    assert (video.file, video.name) == ("/data/my clip.mp4", "my clip")
    assert close(video, VideoLabels("my clip", rows), within_seconds=0.001)


def test_subtitles_of_srt_and_webvtt(tmp_path):
    rows = (Segment("pour", 1.5, 4), Segment("stir & taste", 3661.25, 3662))
    cues = [
        srt.Subtitle(n, timedelta(seconds=row.start_seconds), timedelta(seconds=row.end_seconds), row.label)
        for n, row in enumerate(rows, 1)
    ]
    (tmp_path / "k.srt").write_text(srt.compose(cues))
    page = webvtt.WebVTT()
    page.captions.append(webvtt.Caption("00:00:01.500", "00:00:04.000", "pour"))
    page.captions.append(webvtt.Caption("01:01:01.250", "01:01:02.000", "stir &amp; taste"))
    page.save(str(tmp_path / "k.vtt"))
    for name in ("k.srt", "k.vtt"):
        assert close(read_labels(tmp_path / name)[0], VideoLabels("k", rows))
