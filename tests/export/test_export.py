"""Trap 11: a fresh process that knows only public libraries loads the trained model."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from neobert.config.export import ExportConfig
from neobert.errors import PipelineError
from neobert.export import check, native
from neobert.export.card import card
from neobert.export.export import build_embedder, choose_layout, export, write_directory
from neobert.export.native import native_state
from neobert.export.probe import write_probe
from neobert.export.provenance import lock_facts, locked_upstream, metric_facts
from neobert.export.remote.configuration_neobert import NeoBERTConfig
from neobert.export.remote.modeling_neobert import NeoBERTForMaskedLM, NeoBERTForSequenceClassification
from neobert.export.validate import judge
from neobert.io import sha256_file, write_json
from neobert.model.storage import EmbeddingInfo, load_model

PROMPTS = {"query": "search: ", "document": "passage: "}


def check_here(source, target, tmp_path, settings: ExportConfig) -> dict[str, float]:
    """Export without the fresh process, whose imports cost more than the rest together."""
    model, info, extra = load_model(source)
    embedder = build_embedder(model, info, extra)
    target.mkdir()
    write_directory(target, source, model, embedder, info, settings, choose_layout(settings, info))
    probe = write_probe(tmp_path, model, embedder, info, source / "tokenizer")
    check.main(*(str(p) for p in (target, probe.tensors, probe.description, tmp_path / "result.json")))
    return json.loads((tmp_path / "result.json").read_text())


def test_an_export_loads_and_matches_in_a_fresh_process(make_model_dir, tmp_path):
    source = make_model_dir(EmbeddingInfo("mean", True, PROMPTS, True))
    config = ExportConfig(license="apache-2.0", hardware="2 CPU cores")
    layout, differences = export(source, tmp_path / "exported", config, {"Results": {"loss": "1.5"}})
    assert {"hidden", "hidden_bool_mask", "hidden_additive_mask", "logits", "embeddings_query"} < set(differences)
    assert layout == "native"
    judge(tmp_path, differences, "fp32")
    config = json.loads((tmp_path / "exported/config.json").read_text())
    assert config["model_type"] == "eurobert"
    assert "auto_map" not in config
    assert (config["pad_token_id"], config["mask_token_id"]) == (0, 4)
    text = (tmp_path / "exported/README.md").read_text()
    assert text.startswith("---\nlibrary_name: sentence-transformers")
    for words in ("license: apache-2.0", "2 CPU cores", "## Provenance", sha256_file(source / "model.safetensors")):
        assert words in text
    assert "| loss | `1.5` |" in text
    assert not list(tmp_path.glob(".export-*"))


@pytest.mark.parametrize(
    ("embedding", "changes", "settings"),
    [
        (EmbeddingInfo("cls", False, {}, False), {"tie_word_embeddings": False}, {"max_shard_size_mb": 1}),
        (EmbeddingInfo("max", False, {}, True), {"num_hidden_layers": 40}, {"max_shard_size_mb": 1}),
        (None, {"rope_theta": 50000.0}, {"dtype": "bf16"}),
    ],
    ids=["cls, untied, not normalised", "weighted max, sharded", "pretrained only, bf16"],
)
def test_every_way_of_pooling_and_storing_matches(make_model_dir, tmp_path, embedding, changes, settings):
    target = tmp_path / "exported"
    config = ExportConfig(**settings)
    judge(target, check_here(make_model_dir(embedding, **changes), target, tmp_path, config), config.dtype)
    assert (target / "model.safetensors.index.json").exists() == ("num_hidden_layers" in changes)


def test_the_release_that_brought_the_native_classes_is_said_where_it_is_needed(make_model_dir):
    root = Path(__file__).resolve().parents[2]
    assert f'"transformers>={native.SINCE}"' in (root / "pyproject.toml").read_text()
    assert f"transformers >= {native.SINCE}," in (root / "docs/export.md").read_text()
    info = load_model(make_model_dir())[1]
    assert f"transformers >= {native.SINCE}" in card(ExportConfig(), info, {}, "native")
    assert "transformers >=" not in card(ExportConfig(), info, {}, "neobert")


@pytest.mark.parametrize("layout", ["native", "neobert"])
def test_the_card_offers_the_language_model_only_where_fine_tuning_has_not_spoilt_it(make_model_dir, layout):
    pretrained = card(ExportConfig(), load_model(make_model_dir())[1], {}, layout)
    assert "- fill-mask\n" in pretrained
    assert "AutoModelForMaskedLM.from_pretrained(" in pretrained
    embedder = card(ExportConfig(), load_model(make_model_dir(EmbeddingInfo("mean", True)))[1], {}, layout)
    assert "fill-mask" not in embedder
    assert "MaskedLM" not in embedder
    assert "AutoModel.from_pretrained(" in embedder


BEYOND_NATIVE = {
    "ngpt: true": {"ngpt": True},
    "rope: false": {"rope": False},
    "rms_norm: false": {"rms_norm": False},
    "hidden_act: gelu": {"hidden_act": "gelu"},
    "decoder_bias: true": {"tie_word_embeddings": False, "decoder_bias": True},
}


@pytest.mark.parametrize("named", BEYOND_NATIVE)
def test_what_the_native_classes_lack_carries_its_own_code_and_says_why(make_model_dir, tmp_path, named, caplog):
    target = tmp_path / "exported"
    source = make_model_dir(EmbeddingInfo("mean", True, PROMPTS), **BEYOND_NATIVE[named])
    judge(target, check_here(source, target, tmp_path, ExportConfig(onnx=named == "ngpt: true")), "fp32")
    assert f"native cannot express model.{named}" in caplog.text
    assert named in card(ExportConfig(), load_model(source)[1], {}, "neobert")
    assert (target / "modeling_neobert.py").is_file()


def test_the_neobert_format_loads_and_matches_in_a_fresh_process(make_model_dir, tmp_path):
    source = make_model_dir(EmbeddingInfo("cls", True, PROMPTS, True))
    config = ExportConfig(format="neobert", onnx=True, max_shard_size_mb=1)
    layout, differences = export(source, tmp_path / "exported", config)
    assert layout == "neobert"
    assert differences["hidden_onnx"] <= 1e-5
    assert differences["embeddings_query"] <= 1e-5


def own_classes_model(model_class, **changes):
    torch.manual_seed(0)
    config = NeoBERTConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, inner_size=32, pad_token_id=0
    )
    config.update(changes)
    return model_class(config)


@pytest.mark.parametrize("model_class", [NeoBERTForMaskedLM, NeoBERTForSequenceClassification])
def test_the_neobert_format_trains_the_same_whatever_the_accumulation(model_class, tmp_path):
    ids = torch.randint(5, 64, (8, 12), generator=torch.Generator().manual_seed(0))
    labels = ids if model_class is NeoBERTForMaskedLM else ids[:, 0] % 2
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]

    def first_step(accumulation: int) -> tuple[float, float]:
        settings = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(own_classes_model(model_class), settings, train_dataset=rows)
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]

    assert first_step(4) == pytest.approx(first_step(1), rel=1e-4)


def test_the_neobert_format_returns_hidden_states_where_its_config_says_so():
    ids = torch.tensor([[2, 7, 8, 3]])
    model = own_classes_model(NeoBERTForMaskedLM, output_hidden_states=True)
    assert len(model(ids).hidden_states) == 3
    assert model(ids, output_hidden_states=False).hidden_states is None
    assert own_classes_model(NeoBERTForMaskedLM)(ids).hidden_states is None


def test_a_wrong_export_is_refused(make_model_dir, tmp_path, monkeypatch):
    def interleaved(state, info):
        renamed = native_state(state, info)
        query = "model.layers.0.self_attn.q_proj.weight"
        # The interleaved order of a head's channels: every shape fits, every number is there.
        renamed[query] = renamed[query].view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)
        return renamed

    monkeypatch.setattr(native, "native_state", interleaved)
    target = tmp_path / "wrong"
    with pytest.raises(PipelineError, match="differs from the trained model: hidden"):
        judge(target, check_here(make_model_dir(EmbeddingInfo()), target, tmp_path, ExportConfig()), "fp32")


def test_token_weights_must_be_kept_beside_the_model(make_model_dir, tmp_path):
    source = make_model_dir(EmbeddingInfo(token_weights=True))
    state = load_file(source / "model.safetensors")
    assert torch.is_tensor(state.pop("token_weights"))
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PipelineError, match="missing token_weights"):
        export(source, tmp_path / "exported", ExportConfig())


LOCK = """
schema: '2.0'
stages:
  corpus:
    params: {params.yaml: {corpus: {a: 1}}}
    outs: [{path: data/corpus, md5: abc.dir}]
  pretrain:
    deps: [{path: data/corpus, md5: abc.dir}]
    outs: [{path: models/pretrained, md5: old.dir}]
  contrastive_finetune:
    deps:
    - {path: data/corpus, md5: abc.dir}
    - {path: models/theirs, md5: def.dir}
    - {path: neobert/model, md5: code.dir}
    outs: [{path: models/contrastive, md5: fff.dir}]
  export:
    deps: [{path: models/contrastive, md5: fff.dir}]
    outs: [{path: models/export, md5: last.dir}]
"""


def test_the_card_is_read_as_it_was_meant(make_model_dir):
    info = load_model(make_model_dir(EmbeddingInfo()))[1]
    front = ModelCard(card(ExportConfig(language="no", license="mit"), info, {}, "native")).data
    assert (front.language, front.license, front.library_name) == ("no", "mit", "sentence-transformers")


def test_provenance_is_of_what_the_model_was_made_by(tmp_path):
    (tmp_path / "dvc.lock").write_text(LOCK)
    made_by = locked_upstream(tmp_path / "dvc.lock", "models/contrastive")
    assert list(made_by) == ["corpus", "contrastive_finetune"]  # fine-tuned from another model than pretraining's
    facts = lock_facts(made_by)
    assert list(facts) == ["data/corpus", "models/contrastive", "models/theirs", "params of corpus"]
    assert facts["models/theirs"] == "def.dir"
    assert locked_upstream(tmp_path / "absent", "models/contrastive") == {}
    write_json(tmp_path / "pretrain/metrics.json", {"loss": 2.34567891, "eval": {"loss": 3.0, "name": "x"}})
    assert metric_facts(tmp_path, ["pretrain", "absent"]) == {"pretrain: eval.loss": "3", "pretrain: loss": "2.34568"}
