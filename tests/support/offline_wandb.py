"""Reading W&B's own record of a run: a log of protocol buffers in the frames of LevelDB's log format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


def records(path: Path) -> list[Any]:
    """All records of a ``.wandb`` file: after a header of 7 bytes, blocks of 32 KiB; in them pieces with checksum (4
    bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last) and content."""
    from wandb.proto import wandb_internal_pb2

    data, at, pending, found = path.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too little of the block is left for another piece
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pending += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            found.append(record)
            pending = b""
    return found


class OfflineRun:
    """What the one offline run below a folder holds: its config, group, tags, summary, logged values, and the files of
    its artifacts by the paths that tables refer to."""

    def __init__(self, folder: Path) -> None:
        import wandb

        wandb.teardown()  # a finished run's file is whole when W&B's own process has ended, not before
        (self.path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        self.run: Any = None
        self.summary: dict[str, Any] = {}
        self.history: dict[str, dict[str, Any]] = {}
        self.staged: dict[str, Path] = {}
        self.steps: list[dict[str, Any]] = []
        for record in records(self.path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "history":
                self.steps.append(values(record.history.item))
                for name, value in values(record.history.item).items():
                    outer, _, inner = name.partition("/")
                    self.history.setdefault(outer, {})[inner] = value
            elif kind == "artifact":
                self.staged |= {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}

    def file(self, logged: dict[str, Any]) -> Path:
        """The file that a logged table or picture refers to."""
        return self.path.parent / "files" / logged["path"]


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
