"""A disk that loses power before its k-th write, and what is found on it afterwards.

Whatever changes names goes through an audit hook, which sees also what C code does: an event that raises
does not take place. After the cut nothing more is written, no clean-up either, so the folder is left as by
a process that was killed. What a power cut leaves is less: only what was made durable by fsync is certain.
Two such disks are made of what was noted at each fsync, and a store must cope with all three.
"""

import contextlib
import os
import shutil
import stat
import sys
import threading
from enum import StrEnum
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NAMING = ("os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod")


class PowerCut(BaseException):
    """No Exception, so that nothing on the way swallows it."""


class Found(StrEnum):
    """What is on the disk after the cut."""

    ALL = "all that was written"
    """The process was killed, and the machine goes on."""
    NAMES = "all names, and the contents that were made durable"
    SYNCED = "only what was made durable, names too"


class Disk:
    """Counts what is written below a folder by this thread, and ends it at a point.

    :param root: The folder; what is in it is durable.
    :param cut_before: The number of the write, from 1, that does not take place; None for no cut.
    """

    def __init__(self, root, *, cut_before=None):
        self.root, self.n_writes, self._cut_before = root, 0, cut_before
        self._thread = threading.get_ident()
        self._contents, self._names = {}, {}
        # Held open, the inodes are not given to other files.
        self._held = contextlib.ExitStack()

    def __enter__(self):
        for folder, _, names in os.walk(self.root):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                self._note(path)
        self._real = os.fsync, os.pwrite
        os.fsync, os.pwrite = self._fsync, self._pwrite
        _hook.disk = self
        return self

    def __exit__(self, kind, error, traceback):
        _hook.disk = None
        os.fsync, os.pwrite = self._real
        return kind is PowerCut

    def close(self):
        """Let go of the disk's files."""
        self._held.close()

    @property
    def is_cut(self):
        """Whether the power is gone."""
        return self._cut_before is not None and self.n_writes >= self._cut_before

    def about_to(self, event, arguments):
        """Take note of an event; called before it takes place."""
        if threading.get_ident() != self._thread:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & _WRITING:
                return
        elif event not in _NAMING:
            return
        # What is removed with a whole folder is named relative to that.
        path = os.fsdecode(arguments[0])
        if not os.path.isabs(path) or path.startswith(f"{self.root}{os.sep}"):
            self._write()

    def _write(self):
        if not self.is_cut:
            self.n_writes += 1
        if self.is_cut:
            raise PowerCut

    def _fsync(self, descriptor):
        self._write()
        self._note(os.readlink(f"/proc/self/fd/{descriptor}"))

    def _pwrite(self, descriptor, content, offset):
        self._write()
        return self._real[1](descriptor, content, offset)

    def _note(self, path):
        """Note what is durable now: a file's content, or a folder's names."""
        descriptor = os.open(path, os.O_RDONLY)
        self._held.callback(os.close, descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = {
                entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(path)
            }
        else:
            self._contents[found.st_ino] = Path(path).read_bytes()

    def leave(self, found, folder):
        """Make the folder that is found after the cut.

        :param found: How much of it is there.
        :param folder: Where; it must not exist.
        """
        if found is Found.ALL:
            shutil.copytree(self.root, folder)
        elif found is Found.NAMES:
            self._leave(os.stat(self.root).st_ino, folder, self._present_names())
        else:
            self._leave(os.stat(self.root).st_ino, folder, self._names)
        return folder

    def _present_names(self):
        return {
            os.stat(folder).st_ino: {
                entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(folder)
            }
            for folder, _, _ in os.walk(self.root)
        }

    def _leave(self, inode, folder, names):
        folder.mkdir()
        for name, (number, is_folder) in names.get(inode, {}).items():
            if is_folder:
                self._leave(number, folder / name, names)
            else:
                (folder / name).write_bytes(self._contents.get(number, b""))


class _Hook:
    """Passes audit events to the disk that is in use; a hook cannot be taken away again."""

    def __init__(self):
        self.disk = None

    def __call__(self, event, arguments):
        if self.disk is not None:
            self.disk.about_to(event, arguments)


_hook = _Hook()
sys.addaudithook(_hook)
