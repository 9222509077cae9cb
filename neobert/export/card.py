"""The model card: what the model is, where it comes from, how it scores, how to load it."""

import subprocess
from pathlib import Path

import transformers

from neobert.config.export import ExportConfig
from neobert.export.native import obstacles
from neobert.io import sha256_file
from neobert.model.storage import WEIGHTS, ModelInfo

USAGE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}"{code})
queries = model.encode_query(["how to sort a list"])
documents = model.encode_document(["Return a new list in ascending order."])
print(model.similarity(queries, documents))
```

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
model = AutoModelForMaskedLM.from_pretrained("{path}"{code})
```"""


def git_commit() -> str | None:
    """The commit of the working tree, with ``-dirty`` when tracked files differ; None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def provenance(source: Path, info: ModelInfo) -> dict[str, str]:
    """What identifies the model: hashes of weights and tokenizer, code, libraries."""
    found = {
        "weights (sha256 of the trained model)": sha256_file(source / WEIGHTS),
        "tokenizer (sha256)": info.tokenizer_sha256,
        "transformers": transformers.__version__,
    }
    if Path("params.yaml").is_file():
        found["params.yaml (sha256)"] = sha256_file("params.yaml")
    commit = git_commit()
    if commit is not None:
        found["code (git commit)"] = commit
    return found


def _classes(info: ModelInfo, layout: str) -> str:
    if layout == "native":
        return "transformers' own EuroBERT"
    lacking = obstacles(info.model)
    return "in this directory" + (f", for EuroBERT's lack {', '.join(lacking)}" if lacking else "")


def card(config: ExportConfig, info: ModelInfo, facts: dict[str, str], layout: str) -> str:
    """The text of README.md."""
    model = info.model
    front = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    front += [f"license: {config.license}"] if config.license else []
    front += [f"language: {config.language}"] if config.language else []
    front += ["tags:", "- sentence-transformers", "- fill-mask", "- feature-extraction"]
    embedding = info.embedding
    rows = {
        "layers x width x heads": f"{model.num_hidden_layers} x {model.hidden_size} x {model.num_attention_heads}",
        "feed-forward": f"{model.hidden_act}, {model.mlp_size}",
        "vocabulary": f"{info.vocab_size} rows",
        "longest input": f"{info.max_length} tokens",
        "classes": _classes(info, layout),
        "weights": config.dtype,
        "pooling": "mean" if embedding is None else embedding.pooling,
        "embeddings normalised": "yes" if embedding is None or embedding.normalize else "no",
        "token weights in the pooling": "yes" if embedding is not None and embedding.token_weights else "no",
    }
    table = "\n".join(f"| {k} | {v} |" for k, v in rows.items())
    origin = "\n".join(f"| {k} | `{v}` |" for k, v in facts.items())
    usage = USAGE.format(path="path/to/this/directory", code="" if layout == "native" else ", trust_remote_code=True")
    return (
        "---\n" + "\n".join(front) + f"\n---\n\n# {config.name}\n\n"
        "A text encoder trained by masked language modelling and contrastive fine-tuning.\n\n"
        f"| property | value |\n|---|---|\n{table}\n\n## Use\n\n{usage}\n\n"
        f"## Provenance\n\n| what | value |\n|---|---|\n{origin}\n"
    )
