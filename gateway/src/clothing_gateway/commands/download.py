"""The command ``download``: fetches model archives before the server starts.

An archive is pinned by its SHA-256, which is compared before anything of it is unpacked. It is unpacked beside its
place and renamed, so that no process ever sees half of it. Both stay in the cache under the SHA-256: the next pod that
shares the cache fetches nothing, but compares the archive with its SHA-256 and the files with the archive, as a pod
that can write to the cache could have changed either. The model's folder gets a link for each version.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import HTTPStore, from_url

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("https", "http", "s3", "gs", "az")
# More than the largest image classifiers have, and less than fills a node's disk unnoticed.
MAX_BYTES = 20 * 1024**3
# A SavedModel has a handful; a million would use up a volume's inodes.
_MAX_FILES = 10_000
# On top of the store's own retries of a request: these resume an interrupted transfer.
_ATTEMPTS = 5
_RETRIES: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
_CHUNK_BYTES = 1024**2
_PROGRESS_SECONDS = 5


class DownloadError(Exception):
    """The download failed; the text states the cause and the fix."""


class _BrokenTransferError(Exception):
    """The transfer was interrupted; another attempt may resume it."""


@dataclass(frozen=True)
class Archive:
    """An archive's URL and SHA-256, and the version where it contains none."""

    url: str
    sha256: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Archive:
        """Parse ``URL#sha256=HEX[&version=NUMBER]``, pip's notation of a digest.

        The fragment is not sent.
        """
        url, _, fragment = text.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc or not parts.path.strip("/"):
            raise DownloadError(
                f"{_shown(url)} is no address of an archive: it begins with one of {', '.join(SCHEMES)}"
            )
        if "@" in parts.netloc:
            raise DownloadError(f"{_shown(url)} has credentials in it: set HTTP_AUTHORIZATION instead, from a Secret")
        pins = parse_qs(fragment)
        sha256 = pins.get("sha256", [""])[-1].lower()
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise DownloadError(f"{_shown(url)} isn't pinned: add #sha256= and what `sha256sum` says of the archive")
        version = pins.get("version", [None])[-1]
        if version is not None and not re.fullmatch("[0-9]+", version):
            raise DownloadError(f"{_shown(url)}: version={version} is no number")
        return cls(url, sha256, None if version is None else int(version))

    def __str__(self) -> str:
        return _shown(self.url)


def _shown(url: str) -> str:
    """Return a URL without its query, where a signature is, and without credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def download(archives: list[Archive], *, name: str, to: Path, cache: Path, max_bytes: int = MAX_BYTES) -> None:
    """Link ``to/name/VERSION`` for each version in the archives, and for no other."""
    versions: dict[int, Path] = {}
    for archive in archives:
        with _no_space_explained(archive, cache):
            folder = _cached(archive, cache, max_bytes)
        for version, path in find_versions(folder, archive).items():
            if version in versions:
                raise DownloadError(f"version {version} is in two archives, the second is {archive}: leave one out")
            versions[version] = path
    model = to / name
    model.mkdir(parents=True, exist_ok=True)
    for entry in model.iterdir():
        if entry.is_symlink() and not (entry.name.isdecimal() and int(entry.name) in versions):
            entry.unlink()
    for version, path in sorted(versions.items()):
        link = model / str(version)
        if link.exists() and not link.is_symlink():
            raise DownloadError(f"{link} is there already and no download: remove it, or choose another --to")
        fresh = model / f".{version}-{os.getpid()}"
        fresh.symlink_to(path.absolute())
        fresh.replace(link)
        print(f"{link} is there")


def _cached(archive: Archive, cache: Path, max_bytes: int) -> Path:
    """Return the archive's content, from the cache or fetched into it."""
    place, packed = cache / archive.sha256, cache / f"{archive.sha256}.archive"
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f".{archive.sha256}.lock") as alone:
        if place.is_dir():
            if _holds(archive, packed, place, max_bytes):
                print(f"{archive} is in the cache, with the content of its SHA-256")
                return place
            print(f"{archive} in the cache has not the content of its SHA-256: it is fetched again", flush=True)
        if alone:  # left by a pod that was killed
            for left in cache.glob(f".{archive.sha256}.partial-*"):
                shutil.rmtree(left, ignore_errors=True)
        partial = cache / f".{archive.sha256}.partial-{socket.gethostname()}-{os.getpid()}"
        partial.mkdir()
        try:
            file, content = partial / "archive", partial / "content"
            fetch(archive, file, max_bytes)
            content.mkdir()
            unpack(archive, file, content, max_bytes)
            find_versions(content, archive)
            file.replace(packed)
            with contextlib.suppress(FileNotFoundError):
                place.rename(partial / "replaced")
            with contextlib.suppress(FileExistsError):  # another pod was first; what it has is the same
                content.rename(place)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return place


def _holds(archive: Archive, packed: Path, folder: Path, max_bytes: int) -> bool:
    """Check a cached archive's SHA-256, and that the folder has exactly its files.

    The files are compared byte for byte.
    """
    if folder.is_symlink():
        return False
    try:
        with packed.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != archive.sha256:
                return False
        expected = set()
        for name, source in _content(archive, packed, max_bytes):
            expected.add(folder / name)
            with _plain(folder / name).open("rb") as file:
                while True:
                    chunk = source.read(_CHUNK_BYTES)
                    if file.read(len(chunk) or 1) != chunk:
                        return False
                    if not chunk:
                        break
        found = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    except (OSError, DownloadError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError):
        return False
    return found == expected


def _plain(path: Path) -> Path:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise FileNotFoundError(errno.ENOENT, "no plain file", str(path))
    return path


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Wait for the archive's lock; yield whether it is held.

    Not every shared file system has locks.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another pod is fetching it: waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


@contextlib.contextmanager
def _no_space_explained(archive: Archive, cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DownloadError(
                f"no space left in {cache} for {archive} and its content: give the volume more room "
                "(model.source.download.cache), or remove what it no longer needs"
            ) from None
        if error.errno in {errno.EACCES, errno.EROFS}:
            raise DownloadError(
                f"user {os.getuid()} can't write to {error.filename or cache}: {error.strerror}"
            ) from None
        raise


def fetch(archive: Archive, file: Path, max_bytes: int) -> None:
    """Fetch the archive into a file, and check its SHA-256."""
    print(f"fetching {archive}", flush=True)
    store, path = _open(archive.url)
    with file.open("wb") as target:
        transfer = _Transfer(archive, target, max_bytes)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                transfer.run(store, path)
                break
            except _BrokenTransferError as error:
                if attempt == _ATTEMPTS:
                    raise DownloadError(f"{archive} can't be fetched, tried {_ATTEMPTS} times: {error}") from None
                print(f"{archive}: {error}; trying again", flush=True)
                time.sleep(2 ** (attempt - 1))
        os.fsync(target.fileno())
    if (found := transfer.digest.hexdigest()) != archive.sha256:
        with file.open("rb") as start:
            page = start.read(200).lstrip()[:1] == b"<"
        what = (
            "It is a web page, of an error or a login perhaps."
            if page
            else "The archive was replaced, or another is meant."
        )
        raise DownloadError(f"{archive} has the SHA-256 {found}, and {archive.sha256} is asked for. {what}")


class _Transfer:
    """State of a fetch over all attempts."""

    def __init__(self, archive: Archive, target: IO[bytes], max_bytes: int) -> None:
        self.archive, self.target, self.max_bytes = archive, target, max_bytes
        self.written = 0
        self.digest = hashlib.sha256()
        self._said = time.monotonic()

    def run(self, store: ObjectStore, path: str) -> None:
        """Fetch what is missing."""
        try:
            try:
                answer = obstore.get(store, path, options={"range": {"offset": self.written}} if self.written else None)
            except NotSupportedError:  # no range requests: from the start
                self.target.seek(0)
                self.target.truncate()
                self.written, self.digest = 0, hashlib.sha256()
                answer = obstore.get(store, path)
            size = answer.meta["size"]
            self._check(size)
            for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                self._check(self.written + len(chunk))
                self.target.write(chunk)
                self.digest.update(chunk)
                self.written += len(chunk)
                self._say(size)
        except (NotFoundError, FileNotFoundError):
            raise DownloadError(f"{self.archive} isn't there (404): look at the address, bucket and key") from None
        except (PermissionDeniedError, PermissionError, UnauthenticatedError) as error:
            raise DownloadError(
                f"{self.archive} may not be read: {_reason(error)}. Give the service account a role that may read it, "
                "or credentials in model.source.download.secretName"
            ) from None
        except BaseError as error:
            raise _BrokenTransferError(_reason(error)) from None
        if self.written < size:
            raise _BrokenTransferError(f"the transfer ended after {self.written} of {size} bytes")

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise DownloadError(
                f"{self.archive} has {size} bytes, and {self.max_bytes} are allowed: raise --max-bytes "
                "(model.source.download.maxBytes) if it is meant"
            )

    def _say(self, size: int) -> None:
        if time.monotonic() - self._said > _PROGRESS_SECONDS:
            self._said = time.monotonic()
            share = f" of {size / 1e6:.0f} MB ({self.written / size:.0%})" if size else " MB"
            print(f"  {self.written / 1e6:.0f}{share}", flush=True)


def _open(url: str) -> tuple[ObjectStore, str]:
    """Return a URL's object store, configured by the environment, and the path in it."""
    parts = urlsplit(url)
    # Plain HTTP only where the operator chose it: in the URL, or as a store's endpoint.
    plain = parts.scheme != "https"
    options: ClientConfig = {"allow_http": plain, "timeout": timedelta(hours=6), "read_timeout": timedelta(seconds=60)}
    if bundle := os.environ.get("SSL_CERT_FILE"):
        try:
            options["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:
            raise DownloadError(f"SSL_CERT_FILE names {bundle}, which can't be read: {error.strerror}") from None
    try:
        if parts.scheme in {"http", "https"}:
            if authorization := os.environ.get("HTTP_AUTHORIZATION"):
                options["default_headers"] = {"Authorization": authorization}
            # The whole URL is the store, so that its query is sent byte for byte: a signature depends on it.
            return HTTPStore(url, client_options=options, retry_config=_RETRIES), ""
        store = from_url(f"{parts.scheme}://{parts.netloc}", client_options=options, retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        raise DownloadError(f"{_shown(url)} can't be asked for: {_reason(error)}") from None
    return store, parts.path.lstrip("/")


def _reason(error: Exception) -> str:
    """Return the first line of a store's error and its innermost cause.

    The cause is many lines below.
    """
    # The store's client quotes URLs with their query, where a signature is.
    text = re.sub(r"(\w+://[^\s?]*)\?[^\s)\"]*", r"\1", str(error))
    first = text.splitlines()[0].strip() if text else type(error).__name__
    if "169.254.169.254" in first:
        return (
            "there are no credentials: give the service account a cloud role, or set model.source.download.secretName"
        )
    if certificate := re.search(r"InvalidCertificate\(\s*(\w+)", text):
        return f"the server's certificate is refused ({certificate[1]}); SSL_CERT_FILE names authorities of your own"
    inner = re.findall(r'(?:message|error): "([^"]+)"', text)
    return f"{first[:400]} ({inner[-1]})" if inner else first[:400]


def unpack(archive: Archive, file: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a tar (plain, gzip, bzip2, xz) or zip file within the limits.

    Only regular files, and only within the folder.
    """
    try:
        for name, source in _content(archive, file, max_bytes):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
                os.fsync(target.fileno())
    except FileExistsError as error:
        raise DownloadError(f"{archive} has {Path(error.filename).relative_to(folder)} twice") from None
    except (NotADirectoryError, IsADirectoryError) as error:
        raise DownloadError(f"{archive} has a file and a folder of one name: {error.filename}") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # zipfile raises RuntimeError for an encrypted file, and a kind of it for an unknown compression.
        raise DownloadError(f"{archive} is broken, or packed in a way that isn't known: {error}") from None


def _content(archive: Archive, file: Path, max_bytes: int) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """Yield name and content of each regular file, within the limits."""
    seen = total = 0
    for name, size, source in _members(archive, file):
        seen, total = seen + 1, total + size
        if total > max_bytes or seen > _MAX_FILES:
            raise DownloadError(
                f"{archive} unpacks to more than {max_bytes} bytes or {_MAX_FILES} files: raise --max-bytes "
                "(model.source.download.maxBytes) if it is meant"
            )
        yield name, source


def _members(archive: Archive, file: Path) -> Iterator[tuple[PurePosixPath, int, IO[bytes]]]:
    """Yield name, size and content of each regular file."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            for entry in packed.infolist():
                if entry.filename.endswith(("/", "\\")) or (name := _safe(archive, entry.filename)) is None:
                    continue
                if (entry.external_attr >> 16) & 0o170000 not in {0, 0o100000}:
                    raise _not_plain(archive, entry.filename)
                with packed.open(entry) as source:
                    yield name, entry.file_size, source
    elif tarfile.is_tarfile(file):
        with tarfile.open(file) as packed_tar:
            for member in packed_tar:
                if member.isdir() or (name := _safe(archive, member.name)) is None:
                    continue
                if not member.isreg():
                    raise _not_plain(archive, member.name)
                source_of_member = packed_tar.extractfile(member)
                assert source_of_member is not None  # noqa: S101 - a plain file has a content
                yield name, member.size, source_of_member
    else:
        raise DownloadError(f"{archive} is neither a tar nor a zip file: pack the model with `tar czf model.tar.gz 1`")


def _safe(archive: Archive, text: str) -> PurePosixPath | None:
    """Return a member's name as a path below the folder; None for what macOS adds.

    Windows PowerShell 5 and .NET Framework before 4.6.1 write backslashes in place of slashes.
    """
    name = PurePosixPath(text.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise DownloadError(f"{archive} has {text!r}, which lies outside of it: don't trust it, or pack it anew")
    return None if name.parts[0] == "__MACOSX" or name.name.startswith("._") else name


def _not_plain(archive: Archive, name: str) -> DownloadError:
    return DownloadError(f"{archive} has {name!r}, a link or a device: pack the files themselves (`tar --dereference`)")


def find_versions(folder: Path, archive: Archive) -> dict[int, Path]:
    """Find the versions in an archive's content.

    They are numbered folders, or the content itself, at the top or one folder down.
    """
    inner = folder
    while not _is_version(inner):
        numbered = {int(one.name): one for one in inner.iterdir() if one.name.isdecimal() and _is_version(one)}
        if numbered and archive.version is None:
            return numbered
        if numbered and archive.version in numbered:
            return {archive.version: numbered[archive.version]}
        if numbered and len(numbered) > 1:
            raise DownloadError(
                f"{archive} has no version {archive.version}, but {', '.join(map(str, sorted(numbered)))}"
            )
        folders = [one for one in inner.iterdir() if one.is_dir()]
        if len(folders) != 1:
            found = ", ".join(sorted(one.name for one in inner.iterdir())) or "nothing"
            raise DownloadError(
                f"{archive} has no saved_model.pb in a version's folder (1/saved_model.pb); it has: {found}"
            )
        inner = folders[0]
    if archive.version is not None:
        return {archive.version: inner}
    raise DownloadError(
        f"{archive} doesn't say which version it is: add version=, or pack it in a folder with a number"
    )


def _is_version(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("saved_model.pb", "saved_model.pbtxt"))
