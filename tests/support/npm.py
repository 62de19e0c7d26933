"""Files that others built, out of npm packages: pinned, checked, and fetched once for each machine.

They are kept below $XDG_CACHE_HOME (else ~/.cache), in one directory for the whole table: what changes the table makes another.
The client is the machine's own npm, which fetches all packages in one call and runs none of their scripts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

_TIME_LIMIT: Final = 300  # seconds for the download: 75 MB

FILES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "@chainsafe/as-sha256@1.2.5": {
            "build/optimized.simd.wasm": "50832bc14995b6d5cff1b55890d1ee79343c63433f2d030e24d6da2488125d91",
        },
        "@cwasm/jpeg-turbo@0.1.3": {
            "jpeg-turbo.wasm": "80ed55eef2d0ff276f837ef521fad8181ccdfa6f298f652f6e45aed7fbbbc871",
        },
        "@cwasm/lodepng@0.1.9": {
            "lodepng.wasm": "26f7e3780b2bb5203a89be59ddda7bda2145aa27cc8387fe37153ffbae5c4744",
        },
        "@cwasm/webp@0.1.5": {
            "webp.wasm": "b0bc0f19c589f0d7f27cd98191bc113d0779108a10f38538f466cea4985c480e",
        },
        "@duckdb/duckdb-wasm@1.32.0": {
            "dist/duckdb-coi.wasm": "dfddea58f142a4f61d3e63620cdc659358b5e77a63c1d5df0ec55b00eda03546",
            "dist/duckdb-eh.wasm": "4c221bfa59c11f24dbd750e70c90b9252eca6eec5633936e6a2ec766e55fd879",
            "dist/duckdb-mvp.wasm": "45d72a81fba8e57693d890da837c7041310e385e75619a8559839b15388dfe97",
        },
        "@jitl/quickjs-ng-wasmfile-release-sync@0.32.0": {
            "dist/emscripten-module.wasm": "b56fe5094b8751c47b8c32fb5ed4d75afe2dbb43412d3d983ac5d1156af456da",
        },
        "@jsquash/png@3.1.1": {
            "codec/pkg/squoosh_png_bg.wasm": "263d6e658808a74b72a1a99c5cc1d619237e70c150db6e41d5d84d3d117ab9be",
        },
        "@resvg/resvg-wasm@2.6.2": {
            "index_bg.wasm": "22bf6e9f9a100d972da0411a69c5ba504367fc1fa87b3b64e3f35e53926d2d70",
        },
        "@sqlite.org/sqlite-wasm@3.54.1-build1": {
            "dist/sqlite3.wasm": "b8a92a19f441a90ff2339fe988fbe317c4adf3ed844096f12aee04aa72d58257",
        },
        "binaryen@132.0.0": {
            "bin/wasm-opt": "608c021fa3f2c68cdc26f06a1454341089a0e689abb71cbe5a23ef7300e7f3e3",
        },
        "blake3-wasm@3.0.0": {
            "dist/wasm/blake3.wasm": "7bc38ed8b469117059b43ab04c70b2a5506ab313a9ae2926dd338f072dbd310d",
        },
        "brotli-wasm@3.0.1": {
            "pkg.web/brotli_wasm_bg.wasm": "9ef0a025046bf7d87b7cdb8eac3f73a5c8fea2f1adb848cc9768345573fcd8a9",
        },
        "esbuild-wasm@0.28.2": {
            "esbuild.wasm": "b1831a5c0f6cf688034fb94d0419812f165ea316a3380d3fc00a151e562d2eaf",
        },
        "ghostty-web@0.4.0": {
            "ghostty-vt.wasm": "d6f0326f1874ad2ce9f289e3a4a0c5f3507d4cb38d8747e4b287def470a0c60a",
        },
        "rabin-wasm@0.1.5": {
            "dist/rabin.wasm": "ec0c77d686a320fc30e5777d74e6b726f8cf9b3695f3158121269f6fe6fc4b7d",
        },
        "sh-syntax@0.7.0": {
            "main.wasm": "a5fa93b167190b12547595999cc60f1c2deb5366c214d1ca5b63c96a7c9d39b9",
        },
        "sql.js@1.16.0": {
            "dist/sql-wasm.wasm": "43bbcdd44287e5a2db3b6b5af34b1a3485a7a441285d247976c1ebe3c61f8dbf",
            "dist/sql-wasm-debug.wasm": "d60edf60bd7134326204069ece82255dbe7c017f16664fbe6ed90ba89f277417",
        },
        "tree-sitter-python@0.25.0": {
            "tree-sitter-python.wasm": "16108b50df4ee9a30168794252ab55e7c93bfc5765d7fa0aa3e335752c515f47",
        },
        "wabt@1.0.39": {
            "index.js": "cecf06ab5c65c3b7c05bafe601bbba61a45e4939889c5c51351e8817ac06f48d",
        },
        "web-tree-sitter@0.27.1": {
            "web-tree-sitter.wasm": "beca80e44cccbf2299ed4d1e3fa6462a9a6fe818aeebf847547a392227ce4acc",
        },
        "xxhash-wasm@1.1.0": {
            "workerd/xxhash.wasm": "70c5a91a447af44fa45f11a7d707d1850ecc44f20d5deea58cdd3bfb33213c2a",
        },
    }
)
"""What is used: by package and version, each file and its SHA-256."""


class UnavailableError(Exception):
    """The packages cannot be had on this machine; the message says why."""


def fetch() -> Path:
    """Return the directory that holds every file of the table, as `<package>@<version>/<path>`, after checking its digest.

    Raises:
        UnavailableError: There is no npm, or no registry that it reaches.
        ValueError: A file is not what the table says.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "shmwasm-tests")
    cache.mkdir(parents=True, exist_ok=True)
    table = json.dumps({package: dict(files) for package, files in FILES.items()}, sort_keys=True)
    directory = cache / f"npm-{hashlib.sha256(table.encode()).hexdigest()[:16]}"
    with (cache / "npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes, one fetches and the others wait
        if not directory.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                _download(Path(scratch)).rename(directory)
    return directory


def _download(scratch: Path) -> Path:
    """Fetch and unpack all packages; return the directory, which is complete."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise UnavailableError("there is no npm on this machine")
    options = ["--silent", "--json", "--ignore-scripts", "--fetch-retries=1", f"--cache={scratch / 'cache'}"]
    command = [npm, "pack", *options, f"--pack-destination={scratch}", *FILES]
    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=_TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"npm did not fetch the packages within {_TIME_LIMIT} s") from None
    if done.returncode:
        raise UnavailableError(f"npm cannot fetch the packages: {done.stderr.strip()[-1000:] or done.stdout.strip()[-1000:]}")
    directory = scratch / "packages"
    for packed in json.loads(done.stdout):
        _unpack(scratch / packed["filename"], FILES[packed["id"]], directory / packed["id"])
    return directory


def _unpack(archive: Path, files: Mapping[str, str], directory: Path) -> None:
    with tarfile.open(archive) as tar:
        for path, digest in files.items():
            member = tar.extractfile(f"package/{path}")
            if member is None:
                raise ValueError(f"{archive.name} holds no file {path}")
            content = member.read()
            found = hashlib.sha256(content).hexdigest()
            if found != digest:
                raise ValueError(f"{path} of {archive.name} has the digest {found}, and not {digest}")
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
