"""The files by which sentence-transformers assembles a model: modules, pooling, token weights, normalisation, prompts.

Written in the layout that sentence-transformers 2 to 6 and other servers of such models read. Token weights become
the library's ``WordWeights`` module, whose result our pooling computes.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from neobert.errors import PipelineError
from neobert.io import write_json
from neobert.model.storage import EmbeddingInfo, ModelInfo

TYPES = "sentence_transformers.models."
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
}


def write_modules(directory: Path, info: ModelInfo, embedding: EmbeddingInfo, weights: torch.Tensor | None) -> None:
    """Write the sentence-transformers files into ``directory``, which already holds the tokenizer.

    Args:
        directory: the exported model.
        info: its description.
        embedding: how hidden states become embeddings.
        weights: [V] weight of each token id in the pooling, or None.
    """
    modules = [("", "Transformer")]
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": info.max_length, "do_lower_case": False})
    if weights is not None:
        path = f"{len(modules)}_WordWeights"
        _write_word_weights(directory / path, directory / "tokenizer.json", weights)
        modules.append((path, "WordWeights"))
    path = f"{len(modules)}_Pooling"
    pooling = {key: mode == embedding.pooling for mode, key in POOLING_KEYS.items()}
    write_json(
        directory / path / "config.json",
        {"word_embedding_dimension": info.model.hidden_size, **pooling, "include_prompt": True},
    )
    modules.append((path, "Pooling"))
    if embedding.normalize:
        path = f"{len(modules)}_Normalize"
        (directory / path).mkdir(exist_ok=True)
        modules.append((path, "Normalize"))
    write_json(
        directory / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": f"{TYPES}{kind}"} for i, (path, kind) in enumerate(modules)],
    )
    write_json(
        directory / "config_sentence_transformers.json",
        {
            "prompts": {"query": "", "document": "", **embedding.prompts},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _write_word_weights(directory: Path, tokenizer_json: Path, weights: torch.Tensor) -> None:
    tokens = token_strings(tokenizer_json)
    table = weights[: len(tokens)].float()
    config = {
        "vocab": tokens,
        "word_weights": dict(zip(tokens, table.tolist(), strict=True)),
        "unknown_word_weight": 1.0,
    }
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", config)
    save_file({"emb_layer.weight": table[:, None].contiguous()}, directory / "model.safetensors")


def token_strings(tokenizer_json: Path) -> list[str]:
    """Every token of a tokenizer by id.

    Raises:
        PipelineError: an id of the vocabulary has no token, so that a list cannot hold it.
    """
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(tokenizer_json)).get_vocab(with_added_tokens=True)
    by_id = {index: token for token, index in vocabulary.items()}
    gaps = [i for i in range(len(by_id)) if i not in by_id]
    if gaps:
        raise PipelineError(f"{tokenizer_json}: token ids {gaps[:5]} are missing; sentence-transformers needs all")
    return [by_id[i] for i in range(len(by_id))]
