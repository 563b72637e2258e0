"""A cluster of vLLM servers with adapters by name: a ready application for Ray Serve LLM.

serve run mos_vllm.ray:app base=BASE adapters=users replicas=2

See docs/serving_cluster.md.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, field_validator
from ray.serve.deployment import Application
from ray.serve.llm import LLMConfig, build_openai_app

from mos_vllm.ray_ingress import AdapterIngress
from mos_vllm.ray_replica import ADAPTERS, AdapterServer

BUCKETS = ("s3://", "gs://", "abfss://", "azure://")


class Settings(BaseModel):
    """The arguments of `app`.

    base: folder or hub name of the base model; name: what clients call it, by default the last part of `base`
    adapters: a folder that all machines see, or a bucket (s3://, gs://, abfss://, azure://); each sub-folder is one
    replicas: servers, each with the base model; max_replicas: more of them are started while each has more than
    `requests_per_replica` requests at a time
    adapters_per_replica: adapters that a replica holds; the least recently used leave
    device: CPU only for tests; engine: further arguments of vLLM, as JSON

    Raises ValueError for a folder that does not exist, s3:// without boto3, a name with a colon, an argument that is
    none of these.
    """

    model_config = ConfigDict(extra="forbid")

    base: str
    adapters: str
    name: str = ""
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    requests_per_replica: int = Field(64, ge=1)
    adapters_per_replica: int = Field(1000, ge=1)
    max_lora_rank: int = Field(16, ge=1)
    max_loras: int = Field(8, ge=1)
    device: Literal["GPU", "CPU"] = "GPU"
    engine: Json[dict[str, Any]] | dict[str, Any] = {}

    @field_validator("adapters")
    @classmethod
    def _found(cls, adapters: str) -> str:
        if adapters.startswith("s3://") and find_spec("boto3") is None:
            raise ValueError(f"adapters={adapters} is read with boto3, which is not installed. Run pip install boto3.")
        if adapters.startswith(BUCKETS):
            return adapters.rstrip("/")
        if not Path(adapters).is_dir():
            raise ValueError(f"adapters={adapters} is neither a folder nor a bucket ({', '.join(BUCKETS)}).")
        return str(Path(adapters).absolute())

    @field_validator("base")
    @classmethod
    def _absolute(cls, base: str) -> str:
        return str(Path(base).absolute()) if Path(base).is_dir() else base

    @field_validator("name")
    @classmethod
    def _without_colon(cls, name: str) -> str:
        if ":" in name:
            raise ValueError(f"name={name} must have no colon, which separates it from the name of an adapter.")
        return name


def app(settings: Settings) -> Application:
    """The application: replicas that load adapters when they are asked for, behind one OpenAI API.

    An adapter `ann` is called by the model name `ann` or `<name>:ann`.
    """
    ingress = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}
    return build_openai_app(
        {
            "llm_configs": [llm_config(settings)],
            "ingress_cls_config": {"ingress_cls": AdapterIngress},
            "ingress_deployment_config": ingress,
        }
    )


def llm_config(settings: Settings) -> LLMConfig:
    """The model in Ray's words. Ray's own loader reads a bucket, ours a folder (`mos_vllm.ray_replica`)."""
    bucket = settings.adapters if settings.adapters.startswith(BUCKETS) else None
    held = settings.adapters_per_replica
    return LLMConfig(
        model_loading_config={
            "model_id": settings.name or Path(settings.base).name,
            "model_source": settings.base,
        },
        engine_kwargs={
            "enable_lora": True,
            "max_lora_rank": settings.max_lora_rank,
            "max_loras": settings.max_loras,
            "max_cpu_loras": held,
            **settings.engine,
        },
        lora_config={"dynamic_lora_loading_path": bucket, "max_num_adapters_per_replica": held},
        experimental_configs={ADAPTERS: settings.adapters},
        placement_group_config={"bundle_per_worker": {"CPU": 1}} if settings.device == "CPU" else None,
        deployment_config=scaling(settings) | {"ray_actor_options": {"num_cpus": 0}},
        server_cls=AdapterServer,
    )


def scaling(settings: Settings) -> dict[str, Any]:
    """How many replicas Ray keeps."""
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.requests_per_replica,
        }
    }
