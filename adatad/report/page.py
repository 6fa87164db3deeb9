"""The page of runs: one HTML file that holds its style, scripts and data, and a run's report.html with the timelines
beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from adatad.data.annotations import Annotations, Video
from adatad.files import check_output, check_output_folder, shown, write_bytes, write_text
from adatad.progress_bar import progress
from adatad.report.html_file import page_file, picture_url, policy_digest, script_data, scripts
from adatad.report.page_pictures import strip
from adatad.report.run_data import MAX_TIMELINES, RunReader, Say, run_data, why
from adatad.report.timelines import draw_video, to_png
from adatad.spec import Spec

MAX_FILE_NAME_BYTES = 200
SCRIPTS = (
    "texts",
    "looks",
    "lanes",
    "tip",
    "curves",
    "elements",
    "first",
    "errors",
    "classes",
    "timelines",
    "training",
    "runs",
    "report",
)
"""Names of the page's scripts, in the order in which they are joined."""
STYLES = ("base.css", "curves.css", "report.css")


def page(runs: Sequence[dict[str, Any]], live: bool = False, beside: bool = False) -> str:
    """Return the HTML of a page of runs, each as `run_data` returned it.

    live: it asks its server for newer data; beside: it lies in the run's directory, and links to the files there.
    """
    script = scripts(SCRIPTS)
    # Names may be markup: what isn't marked as safe is escaped.
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(page_file("report.html"))
    return template.render(
        title=", ".join(f"{run['name']} {run['run']}" for run in runs),
        runs=runs,
        live=live,
        style=Markup("\n".join(map(page_file, STYLES))),
        script=Markup(script),
        script_hash=policy_digest(script),
        data=Markup(script_data({"runs": runs, "live": live, "beside": beside})),
    )


def write_page(path: Path, runs: Sequence[tuple[Path, Spec]], say: Say | None = None) -> Path:
    """Write the page of runs, side by side, to a file; return its path. say: called with a line on what is left out.

    Raises FileError if the page can't be written.
    """
    path = check_output(path)
    write_text(path, page([run_data(run, spec, say) for run, spec in runs]))
    return path


def try_write_report(run_directory: Path, spec: Spec) -> str | None:
    """Write a report after the work is done, when no error may cost the result.

    Returns a line that says what is missing and how to try again; None if nothing is.
    """
    missing: list[str] = []
    try:
        write_report(run_directory, spec, missing.append)
    except Exception as error:
        # Any: a defect of drawing must not turn hours of training into a failed job.
        missing.append(f"report.html: {why(error)}")
    if not missing:
        return None
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"not drawn: {missing[0]}{more}; the results stand; adatad report {run_directory} tries again"


def write_report(run_directory: Path, spec: Spec, say: Say | None = None) -> Path:
    """Draw timelines/<video>.png and report.html from what the run directory holds; return the page's path.

    Every file but the spec may be missing, unfinished or damaged: the page then says less, and what it lacks. say:
    called with each such line. Raises FileError if the page can't be written.
    """
    path = check_output(run_directory / "report.html")
    strips: dict[str, str] = {}
    reader = RunReader(run_directory, spec, strips=strips)
    annotations, found = reader.annotations(), reader.detections()
    notes: list[str] = []
    if found and annotations:
        _draw_timelines(run_directory, spec, annotations, found, strips, notes.append)
    write_text(path, page([reader.read(say, notes)], beside=True))
    return path


def _draw_timelines(
    run_directory: Path, spec: Spec, annotations: Annotations, found: dict[str, Any], strips: dict[str, str], note: Say
) -> None:
    """Write every validation video's timeline as a PNG; put the first videos' frames into `strips`, for the page."""
    folder = None
    try:
        folder = check_output_folder(run_directory / "timelines")
    except Exception as error:
        # Without a folder, the page still has its own.
        note(f"timelines: left out: {why(error)}")
    # Two videos may have one file name once slashes are replaced.
    names: set[str] = set()

    def draw(number: int, video: Video) -> None:
        """Draw one video."""
        figure, thumbnails = draw_video(spec, annotations, video, found.get(video.name, []))
        # First: a name that can't be drawn, or a full disk, doesn't cost the page its frames.
        if number < MAX_TIMELINES and (content := strip(thumbnails)) is not None:
            strips[video.name] = picture_url(content, "jpeg")
        if folder is not None:
            write_bytes(folder / f"{_file_name(video.name, names)}.png", to_png(figure))

    with progress("timelines drawn", len(annotations.validation)) as bar:
        for number, video in enumerate(annotations.validation):
            try:
                draw(number, video)
            except Exception as error:
                # Each on its own: a broken video costs its own timeline.
                note(f"timeline of {video.name!r}: left out: {why(error)}")
            bar.advance()


def _file_name(video: str, taken: set[str]) -> str:
    """Return a unique file name for a video's picture: slashes, control characters and excess length are replaced."""
    name = shown(video).replace("/", "_")
    if name in taken or len(name.encode()) > MAX_FILE_NAME_BYTES:
        # By the full name: two long names may have one beginning.
        mark = hashlib.sha256(video.encode(errors="surrogatepass")).hexdigest()[:12]
        name = name.encode()[:MAX_FILE_NAME_BYTES].decode(errors="ignore") + f"-{mark}"
    taken.add(name)
    return name
