"""The embeddings agree at every hop: pretrained, start of fine-tuning, trained, saved, exported, MTEB's encoder."""

import dataclasses

import numpy as np
import torch

from neobert.config.contrastive import ContrastiveConfig, ContrastiveTrainerConfig, EmbeddingWarmupConfig
from neobert.config.export import ExportConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.contrastive.finetune import Places, finetune, start_from
from neobert.contrastive.pairs import Pairs
from neobert.evaluation.encode import TextEncoder
from neobert.export.export import build_embedder, choose_layout, write_directory
from neobert.model.batch import flatten
from neobert.model.embedding import EmbeddingModel
from neobert.model.storage import load_embedding_model, load_model

TRAINER = ContrastiveTrainerConfig(global_batch_size=16, max_steps=3, num_train_epochs=None)
CONFIG = ContrastiveConfig(
    token_weights="idf",
    trainer=TRAINER,
    optimizer=OptimizerConfig(lr=1e-2),
    embedding_warmup=EmbeddingWarmupConfig(trainer=TRAINER),
    load_best_model_at_end=False,
)


def embed(embedder: EmbeddingModel, pairs: Pairs) -> np.ndarray:
    embedder = embedder.cpu().eval()
    with torch.no_grad():
        return embedder(flatten(pairs.take(range(20)).positives, 0), 20).numpy()


def test_embeddings_agree_at_every_hop(world, tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    pairs = Pairs(world / "pairs", "train")
    plain = dataclasses.replace(CONFIG, token_weights="none", embedding_warmup=None)
    pretrained = EmbeddingModel(load_model(world / "model")[0].encoder, "mean", True)
    begun = start_from(world / "model", world / "tokenizer", pairs, plain, seed=0).embedder
    assert np.array_equal(embed(pretrained, pairs), embed(begun, pairs))

    places = Places(world / "pairs", world / "model", world / "tokenizer", world / "tokens", tmp_path / "run")
    done = finetune(CONFIG, places, runtime=RuntimeConfig(save_steps=None), seed=0, world=1)
    done.start.save(tmp_path / "contrastive", done.result.state_dict)
    trained = embed(done.start.embedder, pairs)
    assert not np.allclose(trained, embed(begun, pairs), atol=0.1)
    saved, info = load_embedding_model(tmp_path / "contrastive")
    assert np.array_equal(embed(saved, pairs), trained)

    model, info, extra = load_model(tmp_path / "contrastive")
    (tmp_path / "export").mkdir()
    source, target = tmp_path / "contrastive", tmp_path / "export"
    config = ExportConfig()
    layout = choose_layout(config, info)
    write_directory(target, source, model, build_embedder(model, info, extra), info, config, layout)
    texts = [" ".join(f"w{i - 7}" for i in ids[1:-1]) for ids in pairs.take(range(20)).positives]
    exported = SentenceTransformer(str(target), device="cpu").encode(texts)
    assert np.abs(exported - trained).max() < 1e-5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "contrastive" / "tokenizer")
    for_mteb = TextEncoder(saved, tokenizer, max_length=info.max_length, device="cpu", dtype=torch.float32)
    assert np.abs(for_mteb.encode(texts) - trained).max() < 1e-5
