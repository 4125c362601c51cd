"""A small file system for chaos.py, which can be filled, made read-only, taken away and cut off."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

_MARK = "FINETUNER_CHAOS_MOUNTS"
_SIZE_MB = 192
# EXT4_IOC_SHUTDOWN, as XFS numbered it, and its flag to throw away what is not on the disk yet.
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
_UNMOUNT_TIMEOUT_S = 20.0


class Kind(StrEnum):
    """What the volume is, by what this machine permits."""

    EXT4 = "ext4 in a loop device"
    TMPFS = "tmpfs"
    FOLDER = "plain folder: no mounts are permitted here, so the volume has no faults"


def enter_own_mounts() -> None:
    """Start this process anew where it may mount, and where its mounts end with it."""
    if _MARK in os.environ:
        return
    os.environ[_MARK] = "none"
    ways = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])
    for way in ways:
        if shutil.which("unshare") and _succeeds([*way, "true"]):
            os.environ[_MARK] = "own"
            os.execvp(way[0], [*way, "--propagation", "private", sys.executable, *sys.argv])


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Volume:
    """The volume of the service.

    :param scratch: A folder for the image and the mount point.
    """

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "volume"
        self._image = scratch / "volume.img"
        self._read_only_twin = scratch / "twin"
        for folder in (self.path, self._read_only_twin):
            folder.mkdir()
        self.kind = self._mount_first()

    def _mount_first(self) -> Kind:
        if os.environ.get(_MARK) != "own":
            return Kind.FOLDER
        with self._image.open("wb") as file:
            file.truncate(_SIZE_MB * 2**20)
        # -m 0: what is kept for root would let the service, run by root, write on a full disk.
        is_made = _succeeds(["mkfs.ext4", "-q", "-m", "0", str(self._image)])
        if is_made and _succeeds(["mount", "-o", "loop", str(self._image), str(self.path)]):
            return Kind.EXT4
        options = ["-t", "tmpfs", "-o", f"size={_SIZE_MB}m", "tmpfs"]
        return Kind.TMPFS if _succeeds(["mount", *options, str(self.path)]) else Kind.FOLDER

    def fill(self) -> None:
        """Take all free space."""
        with (self.path / ".ballast").open("wb") as file, suppress(OSError):
            free_bytes = shutil.disk_usage(self.path).free
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(free_bytes - 2**20, 1))
            file.seek(0, os.SEEK_END)
            for size_bytes in (2**16, 2**12):  # until not even a block is left
                with suppress(OSError):
                    while True:
                        os.write(file.fileno(), bytes(size_bytes))

    def free(self) -> None:
        """Give the space back."""
        (self.path / ".ballast").unlink(missing_ok=True)

    def make_read_only(self) -> None:
        """Let no file be opened for writing; those that are open stay so, which Linux insists on."""
        _run("mount", "--bind", str(self.path), str(self._read_only_twin))
        _run("mount", "-o", "remount,bind,ro", str(self._read_only_twin))
        _run("mount", "--move", str(self._read_only_twin), str(self.path))

    def take_away(self) -> None:
        """Leave an empty folder in its place, which cannot be written."""
        _run("mount", "-t", "tmpfs", "-o", "ro,size=4k", "tmpfs", str(self.path))

    def uncover(self) -> None:
        """Undo the last of the two above."""
        _run("umount", "--lazy", str(self.path))

    def cut_power(self) -> None:
        """Lose all that was not made durable; everything fails from then on."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def mount_again(self) -> None:
        """Unmount and mount; nobody may have a file open.

        :raises TimeoutError: When somebody has.
        """
        deadline = time.monotonic() + _UNMOUNT_TIMEOUT_S
        while not _succeeds(["umount", str(self.path)]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"somebody has files open on {self.path}")
            time.sleep(0.2)
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def close(self) -> None:
        """Unmount for good."""
        if self.kind is not Kind.FOLDER:
            _succeeds(["umount", "--lazy", str(self.path)])


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
