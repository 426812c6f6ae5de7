"""The configuration of a job, parsed once from what Hydra composed: one class for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

from pydantic import ConfigDict, Field, Strict, field_validator, model_validator

from prunekit import ranks
from prunekit.bench.options import BenchOptions
from prunekit.data.source import DataSettings
from prunekit.errors import PrunekitError
from prunekit.evaluation.other import EVIDENCE
from prunekit.options import (
    AboveZero,
    Count,
    Flag,
    Number,
    Options,
    Seed,
    ShareAboveZero,
    Takes,
    Text,
    choice,
)
from prunekit.quantization import SCHEMES
from prunekit.records.folder import check_flags
from prunekit.results.settings import TableSettings
from prunekit.run.context import TASKS
from prunekit.run.tracking import MODES
from prunekit.train.embedded import EmbeddedOptions
from prunekit.train.settings import Settings

Component = dict[str, Any]
"""The name of a component and its options; the component's own class says which it has."""


class ModelOptions(Options):
    """The model."""

    group: ClassVar[str] = "model"

    name: Annotated[str, Strict(), Field(min_length=1), Takes("be a hub id or a local folder")] = Field(
        description="hub id or local folder"
    )
    device_map: Annotated[str | None, Strict(), Takes("be a word like 'auto'")] = Field(
        None, description="spread the model over devices: auto"
    )
    revision: Annotated[str | None, Strict(), Takes("be a branch, tag or commit in quotes")] = Field(
        None, description="branch, tag or commit of the hub"
    )
    trust_remote_code: Flag = Field(False, description="run code that comes with the model")
    prompt: Any = Field(None, description='in place of the chat template: "USER: {images}\\n{question} ASSISTANT:"')
    adapter: Any = Field(None, description="folder of a training run, or of a PEFT adapter")
    quantization: choice(SCHEMES) | None = Field(  # type: ignore[valid-type]
        None, description="the decoder's weights in 8 or 4 bits: " + ", ".join(SCHEMES)
    )
    fusion_weights: Text | None = Field(None, description="what fusion=learned loads unless fusion.weights says so")


class DataOptions(Options):
    """The examples; what a data set's own file in conf/data names beyond these is checked when it is opened."""

    model_config = ConfigDict(frozen=True, extra="allow")
    group: ClassVar[str] = "data"

    name: Text = Field(description="name of the data")
    split: Any = Field(None, description="the data's split; of data=mini train, validation, test, heldout, ...")
    limit: Count | None = Field(None, description="the first so many examples")
    max_new_tokens: Count = Field(description="longest answer")
    max_pixels: Count = Field(50_000_000, description="a larger picture is an error of its row")
    frames: Count | None = Field(None, description="frames of a video, evenly spaced; with fps the most there may be")
    fps: AboveZero | None = Field(None, description="frames of a video a second")

    def opened(self) -> DataSettings:
        """The options as ``open_source`` takes them: those that were set."""
        return cast(DataSettings, self.model_dump(exclude_unset=True))


class LoggerOptions(Options):
    """W&B."""

    group: ClassVar[str] = "logger"

    mode: choice(MODES) = Field("auto", description="whether and how W&B is told")  # type: ignore[valid-type]


class ObjectiveOptions(Options):
    """What a sweeper optimises."""

    group: ClassVar[str] = "sweep.objective"

    flops_limit: ShareAboveZero | None = Field(None, description="share of the dense prefill's FLOPs; past it no run")


class SweepOptions(Options):
    """What a sweep runs, and what comes of it."""

    group: ClassVar[str] = "sweep"

    rows: Any = Field(None, description="{NAME: [override, ...]} of a sweep that is no product (hydra/sweeper=rows)")
    only: list[Text] | Text | None = Field(None, description="the rows to run; null: all")
    skip: list[Text] | Text | None = Field(None, description="rows to leave out")
    objective: ObjectiveOptions
    table: TableSettings


class EvalOptions(Options):
    """``task=eval``."""

    group: ClassVar[str] = "eval"

    evidence: choice(EVIDENCE) = Field(  # type: ignore[valid-type]
        "own",
        description="the question whose attention chooses: the own, another about its image, the dialogue's first",
    )


class CalibrateOptions(Options):
    """``task=calibrate``."""

    group: ClassVar[str] = "calibrate"

    split: Text = Field("validation", description="of the data to calibrate on")
    limit: Count = Field(20, description="the first so many examples of it")


class ReportOptions(Options):
    """``task=report``."""

    group: ClassVar[str] = "report"

    runs: Text | None = Field(None, description="the folder of a run or of a sweep; every run below it is read")
    reference: Text | None = Field(None, description="the method or label to compare with")


class ServeOptions(Options):
    """``task=serve``."""

    group: ClassVar[str] = "serve"

    host: Text = Field("127.0.0.1", description="where the server listens")
    port: Count = Field(8000, description="the port it listens at")
    name: Text | None = Field(None, description="what requests call the model; null: model.name")
    requests: Flag = Field(True, description="a request may name its own method and keep ratio")
    timeout: Count = Field(600, description="seconds within which the server must answer")
    arguments: Text | None = Field(
        None, description="further arguments of vLLM, '--enforce-eager --max-model-len 4096'"
    )


class AppOptions(Options):
    """``task=app``."""

    group: ClassVar[str] = "app"

    host: Text = Field("127.0.0.1", description="where the page listens: this machine alone; 0.0.0.0: everybody")
    port: Count = Field(7860, description="the port it listens at")


class RunConfig(Options):
    """What every task knows of a job."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: Text = Field("eval", description=f"what to do ({' | '.join(TASKS)})")
    scorer: Component
    fusion: Component
    schedule: Component
    selector: Component
    reducer: Component
    variant: Text | None = Field(None, description="paper or code, for components that have both")
    preset: Text | None = Field(None, description="name of the method, set by method=NAME")
    keep_ratio: Number | None = Field(
        None, description="share of the visual tokens that stays; 0.5 unless a method or keep_tokens says otherwise"
    )
    keep_tokens: Any = Field(None, description="the same as a count")
    budget: Any = Field(None, description="a target for the cost: flops:0.5, mean_tokens:192, final:64")
    positions: Any = Field(None, description="position ids of what stays: keep (default) or renumber")
    seed: Seed = Field(0, description="seed of everything random")
    device: Text = Field("auto", description="auto, cpu, cuda or cuda:0")
    dtype: Text = Field("auto", description="auto, float32, bfloat16 or float16")
    attn: Text = Field("sdpa", description="attention implementation of the model")
    batch_size: Count = Field(32, description="examples at a time")
    resume: Flag = Field(False, description="go on with the run in hydra.run.dir")
    overwrite: Flag = Field(False, description="replace a finished run of another configuration in hydra.run.dir")
    model: ModelOptions
    data: DataOptions
    logger: LoggerOptions
    sweep: SweepOptions

    @model_validator(mode="after")
    def _check_flags(self) -> RunConfig:
        check_flags(self.resume, self.overwrite)
        return self

    def component(self, kind: str) -> Component:
        """The name and the options of the component of a kind."""
        return dict(getattr(self, kind))


class EvalConfig(RunConfig):
    """``task=eval``."""

    eval: EvalOptions


class BenchConfig(RunConfig):
    """``task=bench``."""

    bench: BenchOptions

    @model_validator(mode="before")
    @classmethod
    def _check_processes(cls, values: Mapping[str, object]) -> Mapping[str, object]:
        if ranks.world() > 1:
            raise PrunekitError(f"task=bench measures time: run it in one process, not in {ranks.world()}")
        return values


class CalibrateConfig(RunConfig):
    """``task=calibrate``."""

    calibrate: CalibrateOptions


class ServeConfig(RunConfig):
    """``task=serve``."""

    serve: ServeOptions


class AppConfig(RunConfig):
    """``task=app``."""

    app: AppOptions


class ReportConfig(RunConfig):
    """``task=report``."""

    report: ReportOptions


class TrainConfig(RunConfig):
    """``task=train``."""

    train: Settings | EmbeddedOptions

    @field_validator("train", mode="before")
    @classmethod
    def _parse(cls, options: object) -> object:
        if not isinstance(options, Mapping):
            return options
        if options.get("kind") == "embedded":
            return EmbeddedOptions(**{key: value for key, value in options.items() if key != "kind"})
        return Settings(**options)


CONFIGS: dict[str, type[RunConfig]] = {
    "eval": EvalConfig,
    "bench": BenchConfig,
    "calibrate": CalibrateConfig,
    "report": ReportConfig,
    "serve": ServeConfig,
    "app": AppConfig,
    "train": TrainConfig,
}
"""The configuration of each task that has options of its own."""


def parse(composed: Mapping[str, object]) -> RunConfig:
    """The typed configuration of a composed one, of its task's class.

    Raises:
        PrunekitError: for the first option that does not fit.
    """
    return CONFIGS.get(str(composed["task"]), RunConfig)(**composed)  # type: ignore[arg-type]
