"""One training run: the model under its pruner, from examples to artifacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import ranks
from prunekit.adapters import attach, weights_digest
from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.loaded import TRAINED_KINDS
from prunekit.models import LoadedModel
from prunekit.pruning.pruner import Pruner
from prunekit.records.folder import TRAINING
from prunekit.records.identity import Identity
from prunekit.records.lock import claimed
from prunekit.train.artifacts import save_artifacts
from prunekit.train.batches import Collator, Examples
from prunekit.train.kinds import with_learned_fusion
from prunekit.train.model import TrainedModel
from prunekit.train.settings import JOURNAL, Settings
from prunekit.train.trainer import Journal, PruneTrainer, arguments_for, last_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINTS = "checkpoints"


def train(
    loaded: LoadedModel,
    examples: Iterable[Example],
    pruner: Pruner,
    settings: Settings,
    folder: Path,
    *,
    data: str = "mini/train",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> LoadedModel:
    """Train on ``examples`` in place and write the artifacts to ``folder``; the model as it is to be evaluated. With
    ``resume`` a training goes on from its last checkpoint, and one that is finished is read again; ``overwrite``
    replaces whatever training the folder holds.

    ``pruner`` gets the trained components' files as its own, unless they are read again; on disk it stands as
    ``Pruner.load(folder)``.

    Raises:
        PrunekitError: for what cannot be trained, a loss that is not finite (naming step and batch), and a folder of
            another configuration.
        FolderError: while another process writes the folder, and for one that holds another finished training.
    """
    if str(loaded.model.dtype) == "torch.float16":
        raise PrunekitError("dtype=float16: its range is too small to train in; use float32 or bfloat16")
    pruner = with_learned_fusion(pruner, settings.kind)
    usable, args = (
        Examples(list(examples), data),
        arguments_for(settings, folder / CHECKPOINTS, loaded.model.device, seed),
    )
    need = settings.batch_size * settings.accumulate * args.world_size
    if len(usable) < need:
        raise PrunekitError(f"data '{data}': {len(usable)} examples do not fill one step's batch of {need}")
    identity = identity_of(loaded, pruner, settings, data, seed, args.world_size)
    with claimed(folder):
        checkpoint = prepare_folder(folder, identity, resume, overwrite)
        if (folder / TRAINING.result).exists():
            return restored(loaded, settings, folder)
        model = TrainedModel(loaded.model, pruner, settings, seed)
        try:
            trainer = PruneTrainer(
                model, settings, args, train_dataset=usable, data_collator=Collator(loaded), callbacks=[Journal(folder)]
            )
            trainer.train(None if checkpoint is None else str(checkpoint))
            if args.should_save:
                save_artifacts(model, folder)
            trainer.accelerator.wait_for_everyone()
        finally:
            model.close()
        return evaluated(loaded, model, settings, folder)


def evaluated(loaded: LoadedModel, model: TrainedModel, settings: Settings, folder: Path) -> LoadedModel:
    """The model without anything of its training: no adapter layers, no gradients, evaluation mode."""
    plain: Any = model.model
    if settings.kind == "lora":
        plain = plain.merge_and_unload()
    plain.requires_grad_(False)
    if settings.checkpointing:
        plain.gradient_checkpointing_disable()
    return _changed(loaded, plain, settings, folder)


def restored(loaded: LoadedModel, settings: Settings, folder: Path) -> LoadedModel:
    """What a finished training left in its folder, put into the model that it started from."""
    plain = attach(loaded.model, folder) if settings.kind in TRAINED_KINDS else loaded.model
    return _changed(loaded, plain, settings, folder)


def _changed(loaded: LoadedModel, plain: PreTrainedModel, settings: Settings, folder: Path) -> LoadedModel:
    changed = settings.kind in TRAINED_KINDS
    name = f"{loaded.name}+{settings.kind}" if changed else loaded.name
    digest = f"{loaded.digest}-{weights_digest(folder)}" if changed else loaded.digest
    return LoadedModel(plain.eval(), loaded.processor, name, digest)


def identity_of(
    loaded: LoadedModel, pruner: Pruner, settings: Settings, data: str, seed: int, processes: int
) -> Identity:
    """The training's identity, as ``train.json`` holds it."""
    return {
        "train": settings.identity,
        "pruner": pruner.describe(),
        "model": loaded.digest,
        "data": data,
        "seed": seed,
        "processes": processes,
    }


def prepare_folder(folder: Path, identity: Identity, resume: bool, overwrite: bool = False) -> Path | None:
    """Record the identity; the checkpoint to go on from, None to start. Without ``resume`` an older run is no start,
    and it is replaced only under ``overwrite`` if it was another one."""
    goes_on = resume and (folder / TRAINING.file).exists()
    checkpoint = None if overwrite else last_checkpoint(folder / CHECKPOINTS)
    if checkpoint is not None and not goes_on:
        raise PrunekitError(
            f"'{folder}' holds checkpoints of a training: resume=true goes on, overwrite=true begins anew, or name "
            "a new folder"
        )
    TRAINING.continues(folder, identity, resume=resume, overwrite=overwrite)
    ranks.wait()  # all have seen what the folder held
    if ranks.is_first() and not goes_on:
        (folder / TRAINING.result).unlink(missing_ok=True)  # of an earlier training: it must not pass for this one's
        if overwrite:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    ranks.wait()  # nobody looks for the result before
    if ranks.is_first() and not (folder / TRAINING.result).exists():
        folder.mkdir(parents=True, exist_ok=True)
        _shorten_journal(folder / JOURNAL, 0 if checkpoint is None else int(checkpoint.name.split("-")[1]))
        TRAINING.write(folder, identity)
    return checkpoint


def _shorten_journal(path: Path, step: int) -> None:
    """Lines after ``step`` are written again by the run that goes on from it."""
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))
