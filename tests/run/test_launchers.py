"""Where a sweep's jobs run: worker processes, clusters, and plugins that are missing."""

from __future__ import annotations

import importlib.util
import json

import pytest
from hydra import compose, initialize_config_dir

from commands import run_main
from prunekit.run.words import CONF
from sweeps import json_rows, sweep


def test_two_workers_share_one_dense_run(monkeypatch, tmp_path, model_folder):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder = tmp_path / "sweep"
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "schedule=one_shot", "schedule.layer=2,99,3"]
    code, out, err = run_main(monkeypatch, *sweep(model_folder, folder, *words))
    assert code == 1 and "2 of 3 jobs finished" in out and "failed: job 1" in err and "layer 99" in err
    for job in ("0", "2"):
        assert json.loads((folder / job / "metrics.json").read_text())["examples"] == 14
    (cache,) = (tmp_path / "cache" / "dense").glob("*.jsonl")
    answers = json_rows(cache)
    assert len(answers) == len({key for key, _ in answers}) == 14  # nothing was computed twice


@pytest.mark.parametrize(
    ("preset", "plugin", "target"),
    [
        ("slurm", "submitit", "SlurmLauncher"),
        ("ray_cluster", "ray", "RayLauncher"),
        ("joblib", "joblib", "JoblibLauncher"),
    ],
)
def test_launcher_presets_compose(preset, plugin, target):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"hydra/launcher={preset}"], return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith(target)


def test_a_launcher_that_is_not_installed(monkeypatch, tmp_path, model_folder):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["hydra/launcher=ray_cluster", "keep_ratio=0.5,0.25"]
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("it is")
    code, _, err = run_main(monkeypatch, *sweep(model_folder, tmp_path, *words))
    assert code == 1 and "pip install hydra-ray-launcher" in err and len(err.strip().splitlines()) == 1
