"""Section ``corpus``: where the text comes from and how it is cut into shards."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from neobert.config.schema import Bounds

# Pure-Python (py3-none-any) packages that requirements.lock pins, so the same bytes on every machine and Python.
PACKAGES = (
    "transformers==5.23.0",
    "sympy==1.14.0",
    "mteb==2.26.24",
    "Pygments==2.21.0",
    "polars==2.1.0",
    "networkx==3.6.1",
    "huggingface_hub==2.4.0",
    "setuptools==84.2.1",
    "sentence-transformers==6.2.0",
    "datasets==5.2.0",
    "pandera==0.35.0",
    "narwhals==2.28.0",
    "pydantic==2.14.3",
    "asyncssh==2.24.1",
    "celery==5.7.0",
    "mpmath==1.3.0",
    "prompt_toolkit==3.0.53",
    "dvc==3.67.1",
    "accelerate==1.15.0",
    "rich==15.0.0",
    "kombu==5.7.0",
    "GitPython==3.2.1",
    "fsspec==2026.9.0",
    "filelock==4.2.11",
    "joblib==1.6.0",
    "ruamel.yaml==0.19.1",
    "anyio==4.16.0",
    "Jinja2==3.1.6",
    "packaging==26.3",
    "hydra-core==1.3.8",
    "pyparsing==3.3.3",
    "urllib3==2.8.0",
    "typer==0.29.2",
    "click==8.5.1",
    "omegaconf==2.3.1",
    "requests==2.34.2",
    "bm25s==0.3.16",
    "attrs==26.1.0",
    "tqdm==4.70.1",
    "pytest==9.2.0",
    "httpx2==2.16.2",
    "httpcore2==2.16.2",
    "pydantic-settings==2.16.3",
    "python-dateutil==2.9.0.post0",
    "dill==0.4.1",
    "pycparser==3.12",
    "markdown-it-py==4.3.0",
    "scmrepo==3.6.2",
    "dvc-data==3.18.3",
    "dvc-objects==5.2.0",
    "tomlkit==0.15.2",
    "amqp==5.4.2",
    "platformdirs==4.14.5",
    "pathspec==1.1.1",
    "typeguard==4.6.0",
    "funcy==2.1",
    "voluptuous==0.16.0",
    "tabulate==0.10.0",
    "sortedcontainers==2.4.0",
    "diskcache==5.6.3",
    "gitdb==4.0.12",
    "gto==1.10.1",
    "sqltrie==0.11.3",
    "pluggy==1.7.0",
    "threadpoolctl==3.8.0",
)


@dataclass(frozen=True)
class HubDataset:
    """One data set of the Hugging Face hub, or a local folder that ``datasets.load_dataset`` opens."""

    name: Annotated[str, "Repository on the hub (`owner/name`), or a local folder."]
    config: Annotated[str | None, "Configuration (subset) of the data set; null for its default."] = None
    split: Annotated[str, "Split to read, in the syntax of `datasets`."] = "train"
    streaming: Annotated[bool, "Read over the network as it goes, without a local copy first."] = True
    max_documents: Annotated[
        int | None, "Stop after this many documents; null reads the whole split.", Bounds(ge=1)
    ] = None

    @property
    def source(self) -> str:
        """What tells this entry from others in manifests: `name`, `name/config`, `name/config:split` (but train)."""
        name = f"{self.name}/{self.config}" if self.config else self.name
        return name if self.split == "train" else f"{name}:{self.split}"


@dataclass(frozen=True)
class CorpusConfig:
    source: Annotated[
        Literal["installed_packages", "files", "hub"],
        "Where text comes from: the source code of installed pinned packages, local or remote files, or the hub.",
    ] = "installed_packages"
    packages: Annotated[
        list[str],
        "Allow-list `name==version` of installed pure-Python packages to read; another version is an error.",
    ] = field(default_factory=lambda: list(PACKAGES))
    held_out_packages: Annotated[
        list[str], "Packages of the list kept for evaluation alone: never in pretraining text, never in pairs."
    ] = field(default_factory=lambda: ["networkx"])
    held_out_module_fraction: Annotated[
        float,
        "Share of the other packages' modules, chosen by hash of their path, kept for evaluation alone.",
        Bounds(gt=0, lt=1),
    ] = 0.1
    task_documents: Annotated[
        int, "Queries, and documents, of each embedded retrieval task; also texts a side of the others.", Bounds(ge=10)
    ] = 500
    max_characters: Annotated[
        int | None,
        "Cap on pretraining text, in characters, shared by the packages in proportion; null for none.",
        Bounds(ge=1000),
    ] = 100_000_000
    files: Annotated[
        list[str],
        "Globs or fsspec URLs of JSONL, Parquet or text files (.gz and .zst are read too); each entry is one source.",
    ] = field(default_factory=list)
    hub: Annotated[list[HubDataset], "Data sets of the hub; each entry is one source."] = field(default_factory=list)
    text_documents: Annotated[
        Literal["file", "paragraph", "line"],
        "What is one document of a plain-text file (paragraphs end at blank lines).",
    ] = "file"
    text_column: Annotated[str, "Column (or JSON key) that holds a document's text."] = "text"
    on_bad_rows: Annotated[
        Literal["fail", "skip"],
        "A row that does not parse, lacks text, is not UTF-8 or is too long: stop with file and line, or count it.",
    ] = "fail"
    max_document_bytes: Annotated[int, "Longest document allowed, in UTF-8 bytes.", Bounds(ge=1)] = 10_000_000
    engine: Annotated[
        Literal["local", "dask"], "Where tokenize and pack run: processes of this host, or a dask.distributed cluster."
    ] = "local"
    scheduler_address: Annotated[
        str | None, "Address of the dask scheduler, e.g. tcp://host:8786; its workers must see this folder."
    ] = None
    validation_fraction: Annotated[
        float, "Share of documents, chosen by hash of their text, kept for validation loss.", Bounds(gt=0, lt=1)
    ] = 0.01
    documents_per_shard: Annotated[
        int, "Documents a shard: the unit of work, of resuming, and the window that packing plans.", Bounds(ge=1)
    ] = 32_768

    @property
    def dask_scheduler(self) -> str | None:
        """Address of the cluster to run on; ``None`` runs on this host."""
        return self.scheduler_address if self.engine == "dask" else None

    def problems(self) -> Iterator[tuple[str, str]]:
        names = [p.partition("==")[0] for p in self.packages]
        if self.source == "installed_packages":
            if not self.packages:
                yield "packages", "must list at least one package when corpus.source is installed_packages"
            if any("==" not in p for p in self.packages):
                yield "packages", "must pin every package as name==version"
            missing = [p for p in self.held_out_packages if p not in names]
            if missing:
                yield "held_out_packages", f"must be in corpus.packages; {', '.join(missing)} is not"
            if not self.held_out_packages:
                yield "held_out_packages", "must name at least one package (its retrieval task is built from it)"
            if len(set(self.held_out_packages)) == len(set(names)):
                yield "held_out_packages", "must leave at least one package for training"
        if (self.engine == "dask") != (self.scheduler_address is not None):
            yield "scheduler_address", f"goes with corpus.engine dask, and corpus.engine is {self.engine}"
        if self.source == "files" and not self.files:
            yield "files", "must name at least one glob or URL when corpus.source is files"
        if self.source == "hub" and not self.hub:
            yield "hub", "must list at least one data set when corpus.source is hub"
        listed = {"files": self.files, "hub": [dataset.source for dataset in self.hub]}.get(self.source, [])
        if twice := sorted({source for source in listed if listed.count(source) > 1}):
            yield self.source, f"must not list a source twice, and does {', '.join(twice)}; remove one of the two"
