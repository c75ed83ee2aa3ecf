"""Takes away what other systems lack, in this process and in all that it starts.

Python imports this module when it starts, if its folder is in PYTHONPATH. MT3KIT_WITHOUT names what
is absent, with commas: see ABSENT.
"""

import importlib.machinery
import os
import shutil
import signal
import sys
from pathlib import Path


def without_modules(*names):
    for name in names:
        sys.modules[name] = None  # importing it is an ImportError


def without(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def without_folder_sync():
    """Folders cannot be opened, as on Windows."""
    open_file = os.open

    def refuse_folders(path, *rest, **options):
        if not options and Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *rest, **options)

    os.open, shutil._use_fd_functions = refuse_folders, False


def without_changes_of_open_files():
    """Files that a process has open cannot be renamed, replaced or removed, as on Windows."""
    rename, replace, remove = os.rename, os.replace, os.remove

    def require_closed(*paths):
        wanted = [os.path.realpath(path) for path in paths]
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                there = str(link.readlink())
            except OSError:
                continue
            if any(there == path or there.startswith(path + "/") for path in wanted):
                error = PermissionError(13, "it is open in another program", str(paths[0]))
                error.winerror = 32
                raise error

    def checked(change):
        def changed(*paths, **options):
            # shutil gives a folder's descriptor. Windows has another kind of temporary files.
            if not options and sys._getframe(1).f_globals["__name__"] != "tempfile":
                require_closed(*paths)
            change(*paths, **options)

        return changed

    os.rename, os.replace = checked(rename), checked(replace)
    os.remove = os.unlink = checked(remove)


def without_many_files():
    """At most 256 files may be open, as on macOS."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


CHANGES = {}  # of modules, when they have been imported


class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in CHANGES else None
        if spec:
            load = spec.loader.exec_module

            def load_and_change(module):
                load(module)
                for change in CHANGES[name]:
                    change(module)

            spec.loader.exec_module = load_and_change
        return spec


sys.meta_path.insert(0, Finder)


def after_import(name, change):
    """Calls change(module) when a module has been imported."""
    CHANGES.setdefault(name, []).append(change)


def without_shared_descriptors():
    """libsndfile has descriptors of its own, as every library on Windows."""

    def refuse_descriptors(soundfile):
        open_file = soundfile.SoundFile.__init__

        def opened(self, file, *rest, **options):
            assert not isinstance(file, int), "a descriptor has no meaning here"
            open_file(self, file, *rest, **options)

        soundfile.SoundFile.__init__ = opened

    after_import("soundfile", refuse_descriptors)


def like_windows():
    """Our own code takes the system for Windows."""
    after_import("mt3data.system", lambda module: setattr(module, "WINDOWS", True))


def ignoring_case():
    after_import("mt3data.system", lambda module: setattr(module, "ignores_case", lambda _: True))


ABSENT = {
    "fcntl": lambda: without_modules("fcntl"),
    "resource": lambda: without_modules("resource"),
    "signals": lambda: without(signal, "SIGUSR1", "SIGUSR2", "SIGHUP", "pthread_sigmask", "SIG_BLOCK"),
    "preadv": lambda: without(os, "preadv", "pread"),
    "o_directory": lambda: without(os, "O_DIRECTORY", "O_NOFOLLOW"),
    "folder_sync": without_folder_sync,
    "open_file_changes": without_changes_of_open_files,
    "fork": lambda: without(os, "fork", "forkpty"),
    "posix": lambda: without(os, "mkfifo", "getpgid", "killpg", "sched_getaffinity"),
    "case": ignoring_case,
    "descriptors": lambda: (like_windows(), without_shared_descriptors()),
    "many_files": without_many_files,
}  # fmt: skip

for absent in filter(None, os.environ.get("MT3KIT_WITHOUT", "").split(",")):
    ABSENT[absent]()
