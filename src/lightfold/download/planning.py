"""What a download needs, stated before it begins, and the download itself: fetched aside, put in its place when whole.

Everything is made below OUT/.lightfold/NAME, on the disk that it is meant for. A capture appears in OUT/NAME/CAPTURE by
one renaming, when all of it is there; an interrupted download goes on from there. What the user has is never replaced.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from threading import Event, Lock
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ..errors import ConfigError
from . import fetch as web
from .catalogue import Source, filled, stated_size
from .fetch import DownloadError, Report, Wanted, fetch
from .unpack import BadArchive, inside, look_into, member_path, unpack

AT_ONCE = 8
"""Single files that are fetched side by side."""
LARGEST_LIST = 16 * 2**20
MOST_PAGES = 1000

Progress = Callable[[str, "int | None"], "AbstractContextManager[Report]"]
"""Called with what is done and its bytes; gives what is called with the bytes of each step."""


@dataclass(frozen=True)
class Archive:
    """One archive. file: where it is kept meanwhile. size: bytes, exact or about. captures: name -> folder in it."""

    wanted: Wanted
    file: Path
    size: int | None
    captures: Mapping[str, str]
    share: float
    """Which part of the archive that is, by the number of captures."""


@dataclass(frozen=True)
class File:
    """One file of a capture. path: below the capture's folder."""

    wanted: Wanted
    capture: str
    path: str


@dataclass(frozen=True)
class Plan:
    """What will be fetched.

    folders: where each capture will be. there: captures that are already, and that are left as they are.
    work:    the folder in which everything is made.
    """

    source: Source
    folders: Mapping[str, Path]
    there: tuple[str, ...]
    work: Path
    archives: tuple[Archive, ...] = ()
    files: tuple[File, ...] = ()

    def aside(self, file: File) -> Path:
        """Where a single file waits until its capture is whole."""
        return self.work / file.capture / file.path

    @property
    def size(self) -> int | None:
        """Bytes to fetch, less what has arrived; None when no host says."""
        sizes = [
            *(None if a.size is None else max(0, a.size - _arrived(a.file)) for a in self.archives),
            *(None if f.wanted.size is None else max(0, f.wanted.size - _arrived(self.aside(f))) for f in self.files),
        ]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def disk(self) -> int | None:
        """Bytes that will be written: archives, and about what is in them."""
        if self.size is None:
            return None
        return self.size + sum(int((archive.size or 0) * archive.share) for archive in self.archives)


def plan(
    source: Source,
    captures: Sequence[str],
    out: Path,
    resolution: str = "",
    images: int | None = None,
    fraction: float | None = None,
    ask: bool = True,
) -> Plan:
    """What to fetch for some captures of a data set, or for all of them. Asks hosts for sizes and lists, nothing more.

    ask: false leaves hosts alone, where an archive is here already.
    resolution, images, fraction: for data sets of single pictures: which size, and how many of them or which part.
    Raises ConfigError for a request that cannot be; DownloadError when a list cannot be had.
    """
    names = chosen(source, captures)
    if source.bucket is None and (resolution or images is not None or fraction is not None):
        raise ConfigError(f"{source.name} comes as a whole: --resolution, --images and --fraction do not apply to it.")
    if images is not None and fraction is not None:
        raise ConfigError("Give --images or --fraction, not both.")
    if images is not None and images < 2:
        raise ConfigError(f"--images must be at least 2, and it is {images}.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError(f"--fraction must be above 0 and at most 1, and it is {fraction:g}.")
    folders = {name: out / name if name == source.name else out / source.name / name for name in names}
    work = out / ".lightfold" / source.name
    if source.bucket is not None:
        listed = tuple(f for name in names for f in _in_bucket(source.bucket, name, resolution, images, fraction))
        missing = tuple(f for f in listed if not _is_there(folders[f.capture] / f.path))
        there = tuple(name for name in names if all(f.capture != name for f in missing))
        return Plan(source, folders, there, work, files=missing)
    there = tuple(name for name in names if _is_there(folders[name]))
    left = [name for name in names if name not in there]
    if source.files is not None:
        return Plan(source, folders, there, work, files=tuple(f for name in left for f in _listed(source.files, name)))
    return Plan(source, folders, there, work, archives=_archives(source, left, work, ask))


def carry_out(
    plan: Plan,
    progress: Progress = lambda title, size: nullcontext(lambda count: None),
    own_archive: Path | None = None,
    keep: bool = False,
    wait: Callable[[float], object] | None = None,
) -> list[str]:
    """Download what a plan says, and return sentences about what was left out.

    own_archive: an archive that the user has fetched; it is used instead of downloading, and stays where it is.
    keep:        also keep archives that were downloaded, for captures that are asked for later.
    Raises DownloadError; what has arrived is kept, so that the same plan can be carried out again.
    """
    notes: list[str] = []
    if own_archive is None:
        require_space(plan.work, plan.disk)
    for archive in plan.archives:
        title = archive.file.name
        if own_archive is None and not archive.file.is_file():
            with progress(f"fetching {title}", archive.size) as report:
                fetch(archive.wanted, archive.file, report, wait=wait or time.sleep)
        if own_archive is not None and (wrong := web.what_is_wrong(own_archive, archive.wanted)):
            notes.append(f"{own_archive} is not the archive that is published: {wrong}.")
        try:
            notes += _unpack(own_archive or archive.file, archive, plan, progress)
        except BadArchive:
            # Another try would find it again instead of asking its host.
            if own_archive is None:
                archive.file.unlink(missing_ok=True)
            raise
        if own_archive is None and not keep:
            with suppress(OSError):
                archive.file.unlink()
    if plan.files:
        _fetch_files(plan, progress, wait)
    # Folders in which nothing is left; one that holds something stays.
    for folder in (plan.work, plan.work.parent):
        with suppress(OSError):
            folder.rmdir()
    return notes


def require_space(folder: Path, needed: int | None) -> None:
    """Raise DownloadError when a disk has less than `needed` bytes free."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise DownloadError(f"{place} cannot be used: {error.strerror}.") from error
    if needed is not None and needed > free:
        raise DownloadError(
            f"{needed / 1e9:.2f} GB are needed below {place}, and {free / 1e9:.2f} GB are free. Make room, or choose "
            "another place with --out."
        )


def chosen(source: Source, captures: Sequence[str]) -> list[str]:
    """The captures that are asked for, or all where none is named. Raises ConfigError for one that is not there."""
    known = list(source.captures)
    for name in captures:
        if name not in known:
            near = get_close_matches(name, known, n=2) or known
            raise ConfigError(
                f"{source.name} has no capture {name!r}. Did you mean {' or '.join(near[:2])}? "
                f"It has {', '.join(known)}."
            )
    if not captures and source.ask:
        raise ConfigError(f"Choose captures: `lightfold download {source.name} CAPTURE ...`, of {', '.join(known)}.")
    return list(dict.fromkeys(captures or known))


def _archives(source: Source, names: list[str], work: Path, ask: bool) -> tuple[Archive, ...]:
    if not names:
        return ()
    whole = source.whole is not None and len(names) == len(source.captures) > 1
    entries = {
        n: filled(dict(source.whole), n) if whole and source.whole else source.archive(n) for n in source.captures
    }
    same: dict[tuple[str, ...], list[str]] = {}
    for name in entries:
        same.setdefault(tuple(entries[name]["urls"]), []).append(name)
    found = []
    for urls, inhabitants in same.items():
        asked = [name for name in inhabitants if name in names]
        if not asked:
            continue
        entry = entries[asked[0]]
        checksum = next(((kind, entry[kind]) for kind in ("sha256", "md5") if entry.get(kind)), None)
        size = stated_size(entry)
        if ask and entry.get("bytes") is None and urls:
            stated = web.size(urls[0])
            # A host that does not answer once is not asked for each capture.
            ask, size = stated is not None, stated or size
        file = work / (Path(urlsplit(urls[0]).path).name if urls else "archive")
        found.append(
            Archive(
                Wanted(urls, entry.get("bytes"), checksum),
                file,
                size,
                {name: entries[name]["inside"] for name in asked},
                len(asked) / len(inhabitants),
            )
        )
    return tuple(found)


def _listed(entry: Mapping[str, Any], capture: str) -> list[File]:
    found = []
    for path, (size, digest) in entry["list"].items():
        urls = tuple(url.replace("{file}", quote(path)) for url in entry["urls"])
        found.append(File(Wanted(urls, size, ("sha256", digest)), capture, path))
    return found


def _in_bucket(
    bucket: Mapping[str, Any], capture: str, resolution: str, images: int | None, fraction: float | None
) -> list[File]:
    """The pictures of one size, all or evenly chosen, and the files with their cameras last."""
    sizes = bucket["sizes"]
    if resolution and resolution not in sizes:
        raise ConfigError(f"There is no resolution {resolution!r}. Known are {', '.join(sizes)}.")
    chosen = sizes[resolution or bucket["default"]]
    start = bucket["prefix"].replace("{capture}", capture)
    pictures = [
        f for f in _listing(bucket["url"], start, chosen["folder"] + "/", capture) if f.path.endswith(chosen["suffix"])
    ]
    beside = [f for f in _listing(bucket["url"], start, "", capture) if f.path in bucket["beside"]]
    if not pictures or not beside:
        raise DownloadError(f"{bucket['url']} lists no pictures or no cameras of {capture} any more.")
    pictures.sort(
        key=lambda f: [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in re.split(r"(\d+)", f.path)]
    )
    count = images if images is not None else round((fraction or 1) * len(pictures))
    if count < len(pictures):
        # Sorted by camera and then by shot, so even steps take about as much of each camera.
        steps = max(count, 2) - 1
        pictures = [pictures[round(i * (len(pictures) - 1) / steps)] for i in range(steps + 1)]
    return [*pictures, *beside]


def _listing(url: str, start: str, folder: str, capture: str) -> list[File]:
    """What a store in Amazon's manner holds in a folder, by its list (ListObjectsV2), which states sizes and tags."""
    query = {"list-type": "2", "prefix": start + folder, **({} if folder else {"delimiter": "/"})}
    found: list[File] = []
    for _ in range(MOST_PAGES):
        page = web.read(f"{url}?{urlencode(query)}", LARGEST_LIST)
        try:
            if b"<!DOCTYPE" in page:  # No list has one, and its entities can be bombs.
                raise ValueError("it has a document type")
            root = ElementTree.fromstring(page)
            for item in root.iterfind("{*}Contents"):
                key, size = item.findtext("{*}Key", ""), int(item.findtext("{*}Size", ""))
                path = key.removeprefix(start)
                if path == key or path.endswith("/"):
                    continue
                if member_path(path) is None or "/".join(member_path(path) or ()) != path or size < 0:
                    raise ValueError(f"{key!r} may not be written")
                tag = item.findtext("{*}ETag", "").strip('"')
                checksum = ("md5", tag) if re.fullmatch(r"[0-9a-f]{32}", tag) else None
                found.append(File(Wanted((url + quote(key),), size, checksum), capture, path))
            following = root.findtext("{*}NextContinuationToken")
        except (ElementTree.ParseError, ValueError) as error:
            raise DownloadError(f"The list of files of {urlsplit(url).hostname} cannot be read: {error}.") from error
        if not following:
            return found
        query["continuation-token"] = following
    raise DownloadError(f"The list of files of {urlsplit(url).hostname} does not end.")


def _unpack(file: Path, archive: Archive, plan: Plan, progress: Progress) -> list[str]:
    """Unpack each capture aside, and put it in its place."""
    content = look_into(file)
    parts = {name: inside(content, folder) for name, folder in archive.captures.items()}
    for name, part in parts.items():
        if not part.members:
            raise DownloadError(f"{file} holds no folder {archive.captures[name]}, where {name} should be.")
    require_space(plan.work, sum(part.size for part in parts.values()))
    for name, part in parts.items():
        aside = plan.work / name
        try:
            if aside.exists():
                shutil.rmtree(aside)
            with progress(f"unpacking {name}", part.size) as report:
                unpack(file, part, aside, report)
            _put(aside, plan.folders[name])
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return [f"{content.links} links in the archive were left out."] if content.links else []


def _fetch_files(plan: Plan, progress: Progress, wait: Callable[[float], object] | None) -> None:
    """Fetch single files side by side; those that have arrived in an earlier try are kept."""
    stop, lock = Event(), Lock()
    here = [file for file in plan.files if plan.aside(file).is_file()]
    left = [file for file in plan.files if not plan.aside(file).is_file()]
    sizes = [file.wanted.size for file in plan.files]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    with progress(f"fetching {len(plan.files)} files", total) as report:
        report(sum(_arrived(plan.aside(file)) for file in here))

        def counted(count: int) -> None:
            with lock:
                report(count)

        def one(file: File) -> None:
            if not stop.is_set():
                try:
                    fetch(file.wanted, plan.aside(file), counted, stop, wait or stop.wait)
                except BaseException:
                    stop.set()
                    raise

        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                done = [pool.submit(one, file) for file in left]
                # The first to fail is the reason; the others were stopped by it.
                errors = [error for error in (future.exception() for future in done) if error is not None]
            finally:
                stop.set()
    if errors:
        raise next((error for error in errors if not isinstance(error, web.Stopped)), errors[0])
    wanted = {plan.aside(file) for file in plan.files}
    for name in dict.fromkeys(file.capture for file in plan.files):
        # An earlier try may have had another choice of pictures.
        for path in [p for p in (plan.work / name).rglob("*") if p.is_file() and p not in wanted]:
            path.unlink()
        _put(plan.work / name, plan.folders[name])


def _put(aside: Path, folder: Path) -> None:
    """Move a whole capture to its place: by one renaming, or beside the files that are there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not _is_there(folder):
            with suppress(FileNotFoundError):
                folder.rmdir()
            os.replace(aside, folder)
            return
        for path in sorted(p for p in aside.rglob("*") if p.is_file()):
            place = folder / path.relative_to(aside)
            place.parent.mkdir(parents=True, exist_ok=True)
            if _is_there(place):
                raise DownloadError(
                    f"{place} has appeared meanwhile, and is left as it is. Run the same command again."
                )
            os.replace(path, place)
        shutil.rmtree(aside)
    except OSError as error:
        raise DownloadError(f"{folder} could not be written: {error.strerror or error}.") from error


def _is_there(path: Path) -> bool:
    """Whether the user has something at a path; an empty folder is nothing."""
    try:
        return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror}.") from error


def _arrived(path: Path) -> int:
    """Bytes of a file that are here, also when it is not yet whole."""
    for place in (path, path.with_name(path.name + ".part")):
        with suppress(OSError):
            return place.stat().st_size
    return 0
