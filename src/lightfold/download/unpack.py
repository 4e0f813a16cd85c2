"""Archives of strangers, unpacked so that they can do no harm.

Every member is looked at before the first one is written. An archive is refused as a whole when a name leads out of the
folder, when two names are one on a disk that ignores case, when it holds devices or links to elsewhere, and when it
grows beyond all measure. Permissions and owners of an archive are not taken over, and nothing is ever written over.
"""

from __future__ import annotations

import lzma
import os
import posixpath
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .fetch import DownloadError

MOST_MEMBERS = 500_000
MOST_GROWTH = 50
"""Unpacked bytes for each byte of an archive. Pictures hardly shrink; text does by a factor of ten."""
ALWAYS_FINE = 256 * 2**20
"""Bytes up to which no growth is suspicious."""
LONGEST_NAME, LONGEST_PATH = 255, 1024
CHUNK = 1 << 20
# Names that are devices on Windows, with whatever suffix.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789")}
# What macOS adds to archives that it makes.
LITTER = {"__MACOSX", ".DS_Store"}
DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, struct.error)
DAMAGE += (EOFError, ValueError, RuntimeError, OverflowError, KeyError, IndexError)
"""What zipfile and tarfile raise on files that are damaged, encrypted or no archives at all."""
UNREADABLE: tuple[type[Exception], ...] = (OSError, *DAMAGE)


class BadArchive(DownloadError):
    """An archive is damaged, or would do harm."""


@dataclass(frozen=True)
class Member:
    """What an archive says about one of its files. path: its folders and its name. handle: zipfile's or tarfile's."""

    path: tuple[str, ...]
    size: int
    handle: Any


@dataclass(frozen=True)
class Content:
    """The files of an archive that may be unpacked, and how many links among them were left out."""

    members: tuple[Member, ...]
    links: int

    @property
    def size(self) -> int:
        """Unpacked bytes."""
        return sum(member.size for member in self.members)


def look_into(archive: Path) -> Content:
    """What a zip or tar archive (also compressed) holds.

    Raises BadArchive for anything that is no archive, is damaged, or would do harm.
    """
    with _opened(archive) as opened:
        return _content(opened, archive)


def inside(content: Content, folder: str) -> Content:
    """The files below a folder of the archive, with paths from there on.

    folder: "garden" or "nerf_synthetic/lego", at the top or further down, where the archive has one such; "" for all,
    less the one folder that everything lies in. Empty when there is none.
    """
    members = content.members
    wanted = tuple(folder.split("/")) if folder else ()
    starts: set[tuple[str, ...]] = set()
    if wanted:
        ends = {member.path[:end] for member in members for end in range(len(wanted), len(member.path))}
        starts = {path for path in ends if path[-len(wanted) :] == wanted}
    elif members:
        starts = {_shared_folder(members)}
    if not starts:
        return Content((), content.links)
    start = min(starts, key=lambda path: (len(path), path))
    kept = (m for m in members if len(m.path) > len(start) and m.path[: len(start)] == start)
    return Content(tuple(Member(m.path[len(start) :], m.size, m.handle) for m in kept), content.links)


def unpack(archive: Path, content: Content, target: Path, report: Callable[[int], None] = lambda count: None) -> None:
    """Write the files of an archive below a new folder.

    content: of this archive, all of it or what `inside` has left. report: called with the number of bytes written.
    Raises BadArchive when it is damaged, DownloadError when the disk is full or a file would replace one.
    """
    handles = {_key_of(member.handle): member for member in content.members}
    try:
        target.mkdir(parents=True)
        with _opened(archive) as opened:
            # In the order of the archive, because a compressed tar can only be read forwards.
            for handle in _handles(opened):
                member = handles.get(_key_of(handle))
                if member is not None:
                    _write(opened, handle, member, archive, target, report)
    except OSError as error:
        where = error.filename or target
        raise DownloadError(f"{where} could not be written: {error.strerror or error}.") from error


def member_path(name: str, windows: bool = os.name == "nt") -> tuple[str, ...] | None:
    """The folders and the name of a member below the folder that is unpacked to; None when it may not be written.

    windows: also refuse what Windows reads as something else: drives, devices, streams, names it would change.
    """
    if not name or name.startswith(("/", "\\")) or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return None
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return None
    if not parts or ".." in parts or max(lengths) > LONGEST_NAME or sum(lengths) + len(parts) > LONGEST_PATH:
        return None
    # A drive letter in front of a name is never meant well, wherever the archive is unpacked.
    if len(parts[0]) == 2 and parts[0][1] == ":":
        return None
    if windows:
        for part in parts:
            if part[-1] in ". " or set(part) & set('<>:"|?*') or part.partition(".")[0].strip().lower() in DEVICES:
                return None
    return parts


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """A zip or tar archive, opened; whatever is wrong with it becomes one sentence."""
    try:
        with archive.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DownloadError(f"{archive} cannot be read: {error.strerror or error}.") from error
    if head.lstrip()[:1] == b"<":
        raise BadArchive(
            f"{archive} is a web page and no archive: its host wants a login, or has had too many visitors today."
        )
    with ExitStack() as stack:
        try:
            opened = _open(archive)
            stack.callback(opened.close)
        except UNREADABLE as error:
            raise BadArchive(f"{archive} is neither a zip nor a tar archive, or is damaged.") from error
        try:
            yield opened
        except DAMAGE as error:
            raise BadArchive(f"{archive} is damaged: {' '.join(str(error).split())[:200]}.") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise BadArchive(f"{archive} is damaged: {error}.") from error


def _open(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    if zipfile.is_zipfile(archive):
        return zipfile.ZipFile(archive)
    return tarfile.open(archive, "r:*")


def _handles(opened: zipfile.ZipFile | tarfile.TarFile) -> Iterable[Any]:
    return opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened


def _key_of(handle: Any) -> int:
    """Where a member begins in its archive, which tells members apart."""
    return int(handle.header_offset if isinstance(handle, zipfile.ZipInfo) else handle.offset)


def _content(opened: zipfile.ZipFile | tarfile.TarFile, archive: Path) -> Content:
    most = max(ALWAYS_FINE, MOST_GROWTH * archive.stat().st_size)
    members: list[Member] = []
    links = total = 0
    seen: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}
    for count, handle in enumerate(_handles(opened), start=1):
        if count > MOST_MEMBERS:
            raise BadArchive(f"{archive} holds more than {MOST_MEMBERS:,} files, which no data set does: refused.")
        name = handle.filename if isinstance(handle, zipfile.ZipInfo) else handle.name
        path = member_path(name)
        if path is None:
            if name in (".", "./"):  # The folder itself.
                continue
            raise BadArchive(f"{archive} holds {name!r}, a name that may not be written: refused, nothing unpacked.")
        if LITTER & set(path) or path[-1].startswith("._"):
            continue
        kind = _kind(opened, handle, path)
        if kind == "link":
            links += 1
            continue
        if kind not in ("file", "folder"):
            raise BadArchive(f"{archive} holds {name!r}, {kind}: refused, nothing unpacked.")
        _register(path, kind, seen, archive)
        if kind == "folder":
            continue
        size = int(handle.file_size if isinstance(handle, zipfile.ZipInfo) else handle.size)
        total += size
        if size < 0 or total > most:
            raise BadArchive(
                f"{archive} would unpack to more than {most / 1e9:.1f} GB, which is out of all proportion: refused."
            )
        members.append(Member(path, size, handle))
    if not members:
        raise BadArchive(f"{archive} holds no files.")
    return Content(tuple(members), links)


def _kind(opened: zipfile.ZipFile | tarfile.TarFile, handle: Any, path: tuple[str, ...]) -> str:
    """What a member is: "file", "folder", "link" to inside the archive, or what else, in words."""
    if isinstance(opened, zipfile.ZipFile):
        if handle.flag_bits & 1:
            return "encrypted with a password"
        mode = stat.S_IFMT(handle.external_attr >> 16) if handle.create_system == 3 else 0
        if mode == stat.S_IFLNK:
            with opened.open(handle) as file:
                return _kind_of_link(path[:-1], file.read(4 * LONGEST_PATH).decode())
        if handle.is_dir():
            return "folder"
        return "file" if mode in (0, stat.S_IFREG) else "a device or a pipe"
    if handle.issym() or handle.islnk():
        return _kind_of_link(path[:-1] if handle.issym() else (), handle.linkname)
    if handle.isdir():
        return "folder"
    return "file" if handle.isreg() else "a device or a pipe"


def _kind_of_link(folder: tuple[str, ...], target: str) -> str:
    """A link is never made; one that leads out tells that the archive was made to do harm."""
    absolute = target.startswith(("/", "\\"))
    inside = member_path(posixpath.normpath("/".join((*folder, target.replace("\\", "/")))))
    return "a link that leads out of it" if absolute or inside is None else "link"


def _register(
    path: tuple[str, ...], kind: str, seen: dict[tuple[str, ...], tuple[tuple[str, ...], str]], archive: Path
) -> None:
    """Note a path and the folders above it, and refuse what is the same as another on some disk.

    seen: path in one spelling -> how it was spelled first, and whether it is a file or a folder.
    """
    # File systems may ignore case, and keep accents in another normal form than the archive does.
    folded = tuple(unicodedata.normalize("NFKC", part).casefold() for part in path)
    for end in range(1, len(path) + 1):
        here = (path[:end], kind if end == len(path) else "folder")
        known = seen.setdefault(folded[:end], here)
        # A folder may be named again, before each of its files. A file may not.
        if known != here or (known is not here and here[1] == "file"):
            one, other = "/".join(known[0]), "/".join(path)
            raise BadArchive(
                f"{archive} holds both {one!r} and {other!r}, which would be written over each other: refused, nothing "
                "unpacked."
            )


def _shared_folder(members: tuple[Member, ...]) -> tuple[str, ...]:
    """The one folder at the top that everything lies in, or ()."""
    tops = {member.path[0] for member in members}
    return (tops.pop(),) if len(tops) == 1 and all(len(member.path) > 1 for member in members) else ()


def _write(
    opened: zipfile.ZipFile | tarfile.TarFile,
    handle: Any,
    member: Member,
    archive: Path,
    target: Path,
    report: Callable[[int], None],
) -> None:
    path = target.joinpath(*member.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    source = opened.open(handle) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(handle)
    assert source is not None
    written = 0
    with source, path.open("xb") as file:
        for chunk in _chunks(source):
            written += len(chunk)
            file.write(chunk)
            report(len(chunk))
    # The growth was judged by what headers say. zipfile and tarfile give no more than that, but may give less.
    if written != member.size:
        raise BadArchive(f"{archive} is damaged: {'/'.join(member.path)} is not as long as it says.")


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk
