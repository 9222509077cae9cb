"""The model card: what the model is, where it comes from, how it scores, how to load it."""

from neobert.config.export import ExportConfig
from neobert.export.native import SINCE, obstacles
from neobert.model.storage import ModelInfo

NEEDS = f"Needs transformers >= {SINCE}, whose EuroBERT classes it is; no remote code.\n\n"
USAGE = """{needs}```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}"{code})
queries = model.encode_query(["how to sort a list"])
documents = model.encode_document(["Return a new list in ascending order."])
print(model.similarity(queries, documents))
```

```python
from transformers import {model}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}"{code})
model = {model}.from_pretrained("{path}"{code})
```"""


def _classes(info: ModelInfo, layout: str) -> str:
    if layout == "native":
        return "transformers' own EuroBERT"
    lacking = obstacles(info.model)
    return "in this directory" + (f", for EuroBERT's lack {', '.join(lacking)}" if lacking else "")


def card(config: ExportConfig, info: ModelInfo, facts: dict[str, dict[str, str]], layout: str) -> str:
    """The text of README.md; ``facts`` are its closing tables by heading."""
    model = info.model
    front = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    front += [f"license: {config.license}"] if config.license else []
    # Quoted, as Norwegian's code is YAML 1.1's false.
    front += [f'language: "{config.language}"'] if config.language else []
    embedding = info.embedding
    # Fine-tuning moves the encoder, and the tied embeddings, away from the language-model head.
    language_model = embedding is None
    front += ["tags:", "- sentence-transformers", *(["- fill-mask"] if language_model else []), "- feature-extraction"]
    rows = {
        "layers x width x heads": f"{model.num_hidden_layers} x {model.hidden_size} x {model.num_attention_heads}",
        "feed-forward": f"{model.hidden_act}, {model.mlp_size}",
        "vocabulary": f"{info.vocab_size} rows",
        "longest input": f"{info.max_length} tokens",
        "classes": _classes(info, layout),
        "weights": config.dtype,
        "pooling": "mean" if embedding is None else embedding.pooling,
        "embeddings normalised": "yes" if embedding is None or embedding.normalize else "no",
        **({"trained on": config.hardware} if config.hardware else {}),
        "token weights in the pooling": "yes" if embedding is not None and embedding.token_weights else "no",
    }
    table = "\n".join(f"| {k} | {v} |" for k, v in rows.items())
    closing = "\n\n".join(
        f"## {heading}\n\n| what | value |\n|---|---|\n" + "\n".join(f"| {k} | `{v}` |" for k, v in rows.items())
        for heading, rows in facts.items()
        if rows
    )
    needs, code = (NEEDS, "") if layout == "native" else ("", ", trust_remote_code=True")
    usage = USAGE.format(
        path="path/to/this/directory",
        needs=needs,
        code=code,
        model="AutoModelForMaskedLM" if language_model else "AutoModel",
    )
    return (
        "---\n" + "\n".join(front) + f"\n---\n\n# {config.name}\n\n"
        "A text encoder trained by masked language modelling and contrastive fine-tuning.\n\n"
        f"| property | value |\n|---|---|\n{table}\n\n## Use\n\n{usage}\n\n"
        f"{closing}\n"
    )
