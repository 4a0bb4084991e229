"""Fetching the published archive. pooch (extra ``download``) is imported where it is used."""

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fastrnn import files
from fastrnn.data import coco
from fastrnn.files import StrPath

URL = "http://cs231n.stanford.edu/coco_captioning.zip"
SIZES = {  # bytes of the published files where they are known
    coco.CAPTIONS: 42_922_600,
    coco.features_file("train", pca=True): 169_541_728,
    coco.features_file("val", pca=True): 82_954_336,
    coco.features_file("train", pca=False): 1_356_322_912,
    coco.features_file("val", pca=False): 663_623_776,
    coco.VOCABULARY: None,
    coco.urls_file("train"): None,
    coco.urls_file("val"): None,
}
ATTEMPTS = 3  # for each URL


def download_data(
    out: StrPath, urls: Sequence[str] = (URL,), *, sha256: str | None = None, progress: bool = False
) -> list[str]:
    """Fetch the archive of the published data set and unpack its files into the new directory ``out``.

    ``urls`` are tried in turn, each some times from the beginning where the connection breaks, until one
    gives the data set; with ``sha256`` (64 hexadecimal digits) only in an archive of that checksum. Only the
    published files are unpacked, wherever in the archive they are, and opened to see that they are whole and
    fit.

    Returns what is not as published, a sentence for each file. Raises ``FileExistsError`` where ``out`` holds
    something, ``ConnectionError`` where no URL can be had, ``ValueError`` for another checksum, for what is
    no archive of the data set, and for a checksum that cannot be one, ``ImportError`` without pooch,
    ``OSError`` where the disk is full; nothing is left behind then.
    """
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise ValueError(f"sha256: expected 64 hexadecimal digits, got {sha256!r}")
    failures: list[str] = []
    answered = False
    for url in urls:
        try:
            with files.new_directory(out) as directory, files.naming(Path(out)):
                archive = directory / "archive.zip"
                _fetch(archive, url, sha256, progress)
                _unpack(archive, directory, progress)
                archive.unlink()
                return _differences(directory)
        except ConnectionError as error:
            failures.append(f"{url}: {error}")
        except ValueError as error:
            failures.append(f"{url}: {error}")
            answered = True
    message = "; ".join(failures) or "no URL was given"
    if answered:
        raise ValueError(message)
    raise ConnectionError(f"could not download: {message}; other places can be given by --url")


def _differences(directory: Path) -> list[str]:
    """What is not as published in a whole data set. Raises ``ValueError`` where it is not whole."""
    try:
        coco.open_data(directory)
    except (OSError, ValueError) as error:
        message = str(error).replace(f"{directory}/", "")
        raise ValueError(f"the archive does not hold the data set: {message}") from error
    sizes = {name: (directory / name).stat().st_size for name in SIZES if (directory / name).exists()}
    return [
        f"{name} has {size} bytes, the published one {SIZES[name]}"
        for name, size in sizes.items()
        if SIZES[name] not in (None, size)
    ]


def _fetch(archive: Path, url: str, sha256: str | None, progress: bool) -> None:
    """Raises ``ConnectionError`` where the URL gives nothing, ``ValueError`` for another checksum."""
    try:
        import pooch
        import requests
    except ImportError as error:
        raise ImportError("downloading needs pooch: pip install 'fastrnn[download]'") from error
    source = pooch.create(
        path=archive.parent,
        base_url="",
        registry={archive.name: None},
        urls={archive.name: url},
        retry_if_failed=ATTEMPTS - 1,
    )
    try:
        source.fetch(archive.name, downloader=pooch.HTTPDownloader(progressbar=progress))
    except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: no URL
        raise ConnectionError(str(error)) from error
    found = pooch.file_hash(str(archive), alg="sha256")
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"expected the SHA-256 checksum {sha256.lower()}, got {found}")


def _unpack(archive: Path, directory: Path, progress: bool) -> None:
    """Write the published files that are in the archive, under their own names, into the directory."""
    from tqdm.auto import tqdm

    try:
        with zipfile.ZipFile(archive) as content:
            members = [
                member
                for member in content.infolist()
                if PurePosixPath(member.filename).name in SIZES and not member.is_dir()
            ]
            total = sum(member.file_size for member in members)
            with tqdm(desc="unpacking", total=total, unit="B", unit_scale=True, disable=not progress) as bar:
                for member in members:
                    path = directory / PurePosixPath(member.filename).name
                    with content.open(member) as source, open(path, "xb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                    bar.update(member.file_size)
    except FileExistsError as error:
        raise ValueError(f"the archive has {Path(error.filename).name} twice") from error
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"not a whole zip archive: {error}") from error
    except RuntimeError as error:  # encrypted, or compressed by a method that zipfile does not know
        raise ValueError(f"the archive cannot be unpacked: {error}") from error
