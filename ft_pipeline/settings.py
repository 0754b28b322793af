"""Where things are: the only file that reads the environment. Every setting is an `FT_*` variable with a working default."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass, field
from pathlib import Path

from ft_pipeline.errors import UserError

PACKAGE = Path(__file__).parent
PROJECT = PACKAGE.parent
NO_MLFLOW = "off"
"""As FT_MLFLOW: nothing is mirrored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The resolved settings of this process."""

    home: Path
    """FT_HOME: the folder of everything local. Default: the nearest `.ft` upwards from the working directory, else `./.ft`."""
    store_uri: str
    """FT_STORE: root of the artifact store, a folder or `s3://bucket/prefix`. Default: FT_HOME/store."""
    catalog_url: str
    """FT_CATALOG: SQLAlchemy URL, SQLite or PostgreSQL. Default: FT_HOME/catalog.db."""
    mlflow_uri: str
    """FT_MLFLOW: MLflow tracking URI, or `off`. Default: SQLite in FT_HOME."""
    dagster_home: Path
    """DAGSTER_HOME. Default: FT_HOME/dagster."""
    recipe_folders: tuple[Path, ...]
    """FT_RECIPES: folders of recipes (os.pathsep between them), read before the packaged ones."""
    s3_endpoint: str | None
    """FT_S3_ENDPOINT: an S3-compatible server other than AWS."""
    hf_endpoint: str
    """HF_ENDPOINT: the Hub. Default: the public one."""
    hf_token: str | None
    """HF_TOKEN: for gated repositories."""
    prices: Path
    """FT_PRICES: the price book of `plan`. Default: the packaged one."""
    signing_key: Path
    """FT_SIGNING_KEY: Ed25519 private key (PEM). Default: FT_HOME/keys/signing.pem, made on first use."""
    signer: str
    """FT_SIGNER: file, `env:VARIABLE` with the key itself, or `exec:COMMAND` (register/keys.py); public keys lie beside FT_SIGNING_KEY.
    Default: file."""
    serve_port: int
    """FT_SERVE_PORT: port of the local OpenAI-compatible server. Default: 8321."""
    serve_rows: int
    """FT_SERVE_ROWS: answers that one server decodes together. Default: 32."""
    serve_waiting: int
    """FT_SERVE_WAITING: requests that may wait for a row; the next gets 429. Default: 256."""
    serve_adapters: int
    """FT_SERVE_ADAPTERS: adapters in memory, least recently used leave first; production ones stay beyond it. Default: 128."""
    fleet: Path | None
    """FT_FLEET: a YAML file that names the vLLM replicas behind the gateway (docs/vllm.md). Default: none."""
    gateway_port: int
    """FT_GATEWAY_PORT: port of the gateway in front of them. Default: 8322."""
    metrics_key: str | None = field(repr=False)
    """FT_METRICS_KEY: bearer key of the gateway's /metrics. Default: none, only this machine may read them."""
    api_port: int
    """FT_API_PORT: port of the platform API. Default: 8400."""
    api_pepper: str | None = field(repr=False)
    """FT_API_PEPPER: the secret without which the table of API keys is of no use; the same for every process of the platform.
    Default: FT_HOME/keys/api-pepper, made on first use."""
    api_proxies: str
    """FT_API_PROXIES: addresses of the ingress, with commas, whose X-Forwarded-For says who calls. Default: 127.0.0.1."""
    vllm_base: str | None
    """FT_VLLM_BASE: digest of the base model that this vLLM replica holds; serve/vllm_server.py sets it. Default: none."""
    vllm_rank: int
    """FT_VLLM_RANK: largest LoRA rank of a vLLM replica, which reserves memory for it: 1, 8, 16, 32, 64, 128, 256, 320 or 512. Default: 64."""
    vllm_slots: int
    """FT_VLLM_SLOTS: adapters that a vLLM replica mixes in one batch. Default: 8."""
    vllm_adapters: int
    """FT_VLLM_ADAPTERS: adapters that a vLLM replica keeps in CPU memory, at least FT_VLLM_SLOTS. Default: 64."""
    offer: Path
    """FT_OFFER: what tenants of the platform may name: base models, suites, policies (docs/platform.md). Default: the packaged one."""
    threads: int
    """FT_THREADS: CPU threads of a child process. Default: 2. Part of bit-exact reproduction on a CPU."""
    memory_gib: int
    """FT_MEMORY_GIB: bounds the keys of all rows and the number of processes that examine them. Mapped files come on top and are given
    back when memory is wanted. Default: 2."""
    processes: int
    """FT_PROCESSES: how many processes train together, one for each GPU. Default: 1."""
    sharding: str
    """FT_SHARDING: what they do with the weights: none, ddp, fsdp (workers/job.py). Default: none."""
    team_member: int
    """FT_TEAM_MEMBER, or JOB_COMPLETION_INDEX of an Indexed Job: which member of a team this process is, from 0. Default: 0."""
    team_size: int
    """FT_TEAM_SIZE: how many processes curate together. Default: 1."""
    base_watch_seconds: int
    """FT_BASE_WATCH_SECONDS: how often the sensors look whether a base model moved. Default: 30."""
    base_debounce_seconds: int
    """FT_BASE_DEBOUNCE_SECONDS: a base model that moved must stay as it is for so long before adapters are judged again. Default: 60."""
    placement: Path | None
    """FT_PLACEMENT: a YAML file that says where jobs run (workers/placed.py). Default: this machine."""
    cluster: str
    """FT_CLUSTER: the profile of the Kubernetes cluster that a placement may name. Default: bare."""
    namespace: str | None
    """FT_NAMESPACE: where its Jobs are made. Default: the profile's."""
    image: str | None
    """FT_IMAGE: of its pods, `repository@sha256:...`. Default: the profile's."""
    notify_url: str | None
    """FT_NOTIFY_URL: where a tenant is told of a gate's verdict. Default: nowhere but the log. A Slack URL is itself a secret."""
    notify_kind: str
    """FT_NOTIFY_KIND: log, webhook (signed JSON) or slack. Default: webhook where there is a URL, else log."""
    notify_secret: str | None = field(repr=False)
    """FT_NOTIFY_SECRET: signs a webhook's body (gate/notify.py). Default: unsigned."""
    export_python: Path
    """FT_EXPORT_PYTHON: the Python of the environment that quantises (`make setup-export`). Default: .venv-export/bin/python of the project."""
    export_image: str | None
    """FT_EXPORT_IMAGE: of the pods that quantise, `repository@sha256:...`. Default: none, they are refused."""
    webhooks_private: bool
    """FT_WEBHOOKS_PRIVATE: 1 lets the platform's webhooks go to private networks and plain http. Default: 0, public https only."""
    queue: str | None
    """FT_QUEUE: the Kueue LocalQueue of its Jobs, `name` or `name:priority-class`. Default: none, pods wait for nodes."""
    actor: str
    """FT_ACTOR: who promotes. Default: the login name."""
    concurrent_jobs: int
    """FT_CONCURRENT_JOBS: jobs of the platform that run at once, never more than the runs that dagster.yaml allows. Default: 50."""

    @property
    def work(self) -> Path:
        """Folder for drafts, run folders, caches; safe to delete while nothing runs."""
        return self.home / "work"


def load() -> Settings:
    """The settings as the environment gives them now."""
    env = os.environ
    home = Path(env.get("FT_HOME") or _nearest_home()).resolve()
    folders = [Path(p) for p in env.get("FT_RECIPES", "").split(os.pathsep) if p]
    return Settings(
        home=home,
        store_uri=env.get("FT_STORE") or str(home / "store"),
        catalog_url=env.get("FT_CATALOG") or f"sqlite:///{home / 'catalog.db'}",
        mlflow_uri=env.get("FT_MLFLOW") or f"sqlite:///{home / 'mlflow.db'}",
        dagster_home=Path(env.get("DAGSTER_HOME") or home / "dagster"),
        recipe_folders=(*folders, PACKAGE / "recipes"),
        s3_endpoint=env.get("FT_S3_ENDPOINT") or env.get("AWS_ENDPOINT_URL"),
        hf_endpoint=env.get("HF_ENDPOINT") or "https://huggingface.co",
        hf_token=env.get("HF_TOKEN"),
        prices=Path(env.get("FT_PRICES") or PACKAGE / "planning" / "prices.yaml"),
        signing_key=Path(env.get("FT_SIGNING_KEY") or home / "keys" / "signing.pem"),
        signer=_signer(),
        serve_port=_whole_number("FT_SERVE_PORT", 8321),
        serve_rows=_whole_number("FT_SERVE_ROWS", 32),
        serve_waiting=_whole_number("FT_SERVE_WAITING", 256),
        serve_adapters=_whole_number("FT_SERVE_ADAPTERS", 128),
        fleet=Path(env["FT_FLEET"]) if env.get("FT_FLEET") else None,
        gateway_port=_whole_number("FT_GATEWAY_PORT", 8322),
        metrics_key=env.get("FT_METRICS_KEY") or None,
        api_port=_whole_number("FT_API_PORT", 8400),
        api_pepper=env.get("FT_API_PEPPER") or None,
        api_proxies=env.get("FT_API_PROXIES") or "127.0.0.1",
        vllm_base=env.get("FT_VLLM_BASE") or None,
        vllm_rank=int(_one_of("FT_VLLM_RANK", ("64", "1", "8", "16", "32", "128", "256", "320", "512"))),
        vllm_slots=_whole_number("FT_VLLM_SLOTS", 8),
        vllm_adapters=_whole_number("FT_VLLM_ADAPTERS", 64),
        offer=Path(env.get("FT_OFFER") or PACKAGE / "jobs" / "offer.yaml"),
        threads=_whole_number("FT_THREADS", 2),
        memory_gib=_whole_number("FT_MEMORY_GIB", 2),
        processes=_whole_number("FT_PROCESSES", 1),
        sharding=_one_of("FT_SHARDING", ("none", "ddp", "fsdp", "zero1", "zero2", "zero3")),
        team_member=_whole_number("FT_TEAM_MEMBER", int(env.get("JOB_COMPLETION_INDEX") or 0), least=0),
        team_size=_whole_number("FT_TEAM_SIZE", 1),
        base_watch_seconds=_whole_number("FT_BASE_WATCH_SECONDS", 30),
        base_debounce_seconds=_whole_number("FT_BASE_DEBOUNCE_SECONDS", 60, least=0),
        placement=Path(env["FT_PLACEMENT"]) if env.get("FT_PLACEMENT") else None,
        cluster=env.get("FT_CLUSTER") or "bare",
        namespace=env.get("FT_NAMESPACE") or None,
        image=env.get("FT_IMAGE") or None,
        export_python=Path(env.get("FT_EXPORT_PYTHON") or PROJECT / ".venv-export" / "bin" / "python").absolute(),
        export_image=env.get("FT_EXPORT_IMAGE") or None,
        webhooks_private=_one_of("FT_WEBHOOKS_PRIVATE", ("0", "1")) == "1",
        queue=env.get("FT_QUEUE") or None,
        notify_url=env.get("FT_NOTIFY_URL") or None,
        notify_kind=_notify_kind(),
        notify_secret=env.get("FT_NOTIFY_SECRET") or None,
        actor=env.get("FT_ACTOR") or getpass.getuser(),
        concurrent_jobs=_whole_number("FT_CONCURRENT_JOBS", 50),
    )


def secret(variable: str, *, why: str = "A recipe names it as the key of a judge.") -> str:
    """The value of an environment variable that a recipe names, for a key that must be in no file. Raises UserError when it is not set."""
    if not (value := os.environ.get(variable)):
        raise UserError(
            f"the environment variable {variable} is not set",
            why=f"{why} Keys are never written into recipes or artifacts.",
            cure=f"export {variable}=... where the pipeline runs, or name no key where none is needed",
        )
    return value


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of a child process: ours, the resolved places, offline hub libraries, no telemetry."""
    return {
        **os.environ,
        "FT_HOME": str(settings.home),
        "FT_STORE": settings.store_uri,
        "FT_CATALOG": settings.catalog_url,
        "FT_MLFLOW": settings.mlflow_uri,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(settings.threads),
        # threads that spin while they wait cost 10x when another process wants the core (measured: 420 against 50 ms a step)
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def job_environment(settings: Settings) -> dict[str, str]:
    """The environment of a job, which runs a recipe's own functions: a child's without the signing key and the API's pepper."""
    kept = child_environment(settings).items()
    return {name: value for name, value in kept if f"env:{name}" != settings.signer and name != "FT_API_PEPPER"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """Which process of a training run this is, as its starter (finetune/ranks.py or torchrun) says."""

    rank: int
    size: int
    local_rank: int
    """On this machine: the number of its GPU."""
    rendezvous: str
    """Where the processes find each other: a PyTorch init_method."""


def rank_here() -> Rank | None:
    """None in a process that is no part of a group."""
    if "RANK" not in os.environ:
        return None
    return Rank(
        rank=_whole_number("RANK", 0, least=0),
        size=_whole_number("WORLD_SIZE", 1),
        local_rank=_whole_number("LOCAL_RANK", 0, least=0),
        rendezvous=os.environ.get("FT_RENDEZVOUS") or "env://",
    )


def rank_environment(rank: int, size: int, rendezvous: str) -> dict[str, str]:
    """The environment of a process of a group on this machine."""
    names = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "FT_RENDEZVOUS": rendezvous}
    return {**os.environ, **names}


def _whole_number(name: str, default: int, *, least: int = 1) -> int:
    said = os.environ.get(name) or str(default)
    if not said.isdecimal() or int(said) < least:
        raise UserError(f"{name} is {said!r}", cure=f"set it to a whole number from {least}, or unset it: {default}")
    return int(said)


def _one_of(name: str, known: tuple[str, ...]) -> str:
    said = os.environ.get(name) or known[0]
    if said not in known:
        raise UserError(f"{name} is {said!r}", cure=f"set it to {', '.join(known)}, or unset it: {known[0]}")
    return said


def _signer() -> str:
    said = os.environ.get("FT_SIGNER") or "file"
    kind, _, where = said.partition(":")
    if said != "file" and not (kind in ("env", "exec") and where):
        raise UserError(
            f"FT_SIGNER is {said!r}",
            cure="set it to `file`, `env:VARIABLE` or `exec:COMMAND`, or unset it: file",
        )
    return said


def _notify_kind() -> str:
    url = os.environ.get("FT_NOTIFY_URL")
    kind = (
        _one_of("FT_NOTIFY_KIND", ("log", "webhook", "slack"))
        if "FT_NOTIFY_KIND" in os.environ or not url
        else "webhook"
    )
    if kind != "log" and not url:
        raise UserError(
            f"FT_NOTIFY_KIND is {kind!r} and FT_NOTIFY_URL is not set",
            why="Nobody would be told of a verdict.",
            cure="set FT_NOTIFY_URL to the address that takes the POST, or FT_NOTIFY_KIND to log",
        )
    return kind


def _nearest_home() -> Path:
    here = Path.cwd()
    return next((p / ".ft" for p in (here, *here.parents) if (p / ".ft").is_dir()), here / ".ft")
