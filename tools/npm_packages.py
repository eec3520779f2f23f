"""Where is a package of the npm registry on this machine? Fetched once, into the user's cache directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path


def npm_package(spec: str) -> Path:
    """The unpacked package `spec`, such as "@scope/name@1.2.3". Raises LookupError with the reason if it cannot be
    had."""
    folder = spec.replace("@", "").replace("/", "-")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irlab-tools" / folder
    if not cache.is_dir():
        if shutil.which("npm") is None:
            raise LookupError(f"npm, which fetches {spec}, is not installed")
        partial = cache.with_name(f"{folder}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            _unpack(spec, partial)
            if not cache.is_dir():
                os.replace(partial, cache)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return cache / "package"


def _unpack(spec: str, folder: Path) -> None:
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), spec]
    packed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if packed.returncode:
        raise LookupError(f"npm could not fetch {spec}: {packed.stderr.strip()[-200:]}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
