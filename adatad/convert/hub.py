"""Download of one file of Hugging Face by its own library, with its login, where files ask for one."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from adatad.convert.download import DownloadError, ExpectedFile, obtain
from adatad.files import reason


def has_library() -> bool:
    """Return whether huggingface-hub is installed."""
    return find_spec("huggingface_hub") is not None


def download_from_hub(repository: str, file: str, output: Path, expected: ExpectedFile) -> str:
    """Download a repository's file to `output`, which appears when it is complete and right; return its SHA-256.

    The token is that of `hf auth login` or of HF_TOKEN. Raises DownloadError, and FileError for `output`.
    """

    def receive(part: Path) -> None:
        # A folder of its own beside the file: the library keeps notes there, and a rename needs the same disk.
        folder = part.with_name(part.name + ".hub")
        try:
            Path(_received(repository, file, folder)).replace(part)
        except OSError as error:
            raise DownloadError(f"{part}: can't be written: {reason(error)}; nothing was written") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return obtain(output, expected, receive)


def _received(repository: str, file: str, folder: Path) -> str:
    """Return the path of the file that the library downloaded into `folder`."""
    from huggingface_hub import errors, hf_hub_download

    where = f"huggingface.co/{repository}"
    try:
        return hf_hub_download(repository, file, local_dir=folder)
    except errors.GatedRepoError as error:
        why = "asks for a login: accept its terms in a browser, then `hf auth login` or set HF_TOKEN"
        raise DownloadError(f"{where}: {why}; nothing was written") from error
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError) as error:
        why = f"has no file {file} any more, or shows it to others only"
        raise DownloadError(f"{where}: {why}; nothing was written") from error
    except errors.HfHubHTTPError as error:
        raise DownloadError(f"{where}: the server failed: {_line(error)}; nothing was written") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise DownloadError(f"{where}: can't be reached: {_line(error)}; nothing was written") from error
    except OSError:
        # Of the disk; the caller names the file.
        raise
    except Exception as error:
        # The library passes on the errors of its own transports.
        raise DownloadError(f"{where}: {_line(error)}; nothing was written") from error


def _line(error: BaseException) -> str:
    """Return the first line of a library's message, which goes on with advice of its own."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
