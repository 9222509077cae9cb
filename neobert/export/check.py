"""Load an exported directory with the public libraries alone, and compare with what the training model answered.

``python -m neobert.export.check DIRECTORY PROBE_TENSORS PROBE_DESCRIPTION RESULT`` runs in a fresh process that
imports transformers and sentence-transformers and nothing of the training code, as a user's would. It writes the
largest differences as JSON and judges nothing; ``neobert.export.validate`` does. Cost: a few forwards on the CPU.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def padded(sequences: list[torch.Tensor], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, L] and their 0/1 attention mask."""
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad_token_id)
    lengths = torch.tensor([len(s) for s in sequences])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference, over the largest magnitude of ``b`` where that is above 1."""
    return float((a.float() - b.float()).abs().max() / max(1.0, float(b.abs().max())))


def check_transformers(directory: str, probe: dict[str, torch.Tensor], about: dict, code: bool) -> dict[str, float]:
    """Differences of ``AutoModel``, ``AutoModelForMaskedLM`` and ``AutoModelForSequenceClassification``."""
    from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

    sequences = [probe[f"ids.{i}"] for i in range(about["sequences"])]
    ids, mask = padded(sequences, about["special"]["pad_token_id"])
    keep = mask.bool()
    options = {"trust_remote_code": code}
    model = AutoModel.from_pretrained(directory, dtype=torch.float32, **options).eval()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    # What transformers' own mask functions make of a padded batch: [B, 1, L, L], 0 or the lowest number.
    lowest = torch.finfo(torch.float32).min
    additive = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1]).masked_fill(~keep[:, None, None], lowest)
    found = {
        "hidden": largest(hidden[keep], probe["hidden"]),
        "hidden_bool_mask": largest(model(input_ids=ids, attention_mask=keep).last_hidden_state[keep], probe["hidden"]),
        "hidden_additive_mask": largest(
            model(input_ids=ids, attention_mask=additive).last_hidden_state[keep], probe["hidden"]
        ),
    }
    half = AutoModel.from_pretrained(directory, dtype=torch.bfloat16, **options).eval()
    bf16 = half(input_ids=ids, attention_mask=mask).last_hidden_state[keep].float()
    found["hidden_bf16_relative"] = float((bf16 - probe["hidden"]).norm() / probe["hidden"].norm())
    lm = AutoModelForMaskedLM.from_pretrained(directory, dtype=torch.float32, **options).eval()
    found["logits"] = largest(lm(input_ids=ids, attention_mask=mask).logits[keep], probe["logits"])
    classifier = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, num_labels=3, **options
    )
    logits = classifier.eval()(input_ids=ids, attention_mask=mask).logits
    found["classifier_rows"] = float(logits.isfinite().all(-1).sum() - len(ids))
    return found


def check_onnx(directory: str, probe: dict[str, torch.Tensor], about: dict) -> dict[str, float]:
    """Difference of hidden states through onnxruntime; nothing where no ONNX file was written."""
    path = Path(directory) / "onnx" / "model.onnx"
    if not path.is_file():
        return {}
    import onnxruntime

    ids, mask = padded([probe[f"ids.{i}"] for i in range(about["sequences"])], about["special"]["pad_token_id"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (hidden,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    return {"hidden_onnx": largest(torch.from_numpy(hidden)[mask.bool()], probe["hidden"])}


def check_tokenizer(directory: str, about: dict, code: bool) -> dict[str, float]:
    """How many probe texts tokenise differently, and how many special ids differ."""
    from transformers import AutoTokenizer

    # Said either way: transformers asks at the terminal where a directory with code is opened without a word.
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=code)
    differing = [
        tokenizer(text, truncation=True)["input_ids"] != ids
        for text, ids in zip(about["texts"], about["token_ids"], strict=True)
    ]
    special = [getattr(tokenizer, name) != value for name, value in about["special"].items()]
    names = set(tokenizer("x")) != {"input_ids", "attention_mask"}
    return {"tokenizer": float(sum(differing) + sum(special) + names)}


def check_sentence_transformers(
    directory: str, probe: dict[str, torch.Tensor], about: dict, code: bool
) -> dict[str, float]:
    """Differences of embeddings for each prompt, through ``SentenceTransformer``."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(directory, device="cpu", trust_remote_code=code, model_kwargs={"dtype": torch.float32})
    found = {"max_seq_length": float(abs((model.max_seq_length or 0) - about["max_length"]))}
    for name in about["prompts"]:
        embeddings = model.encode(about["texts"], prompt_name=name, convert_to_tensor=True, show_progress_bar=False)
        found[f"embeddings_{name}"] = largest(embeddings, probe[f"embeddings.{name}"])
    return found


@torch.no_grad()
def main(directory: str, tensors: str, description: str, result: str) -> None:
    """Compare and write the differences."""
    probe, about = load_file(tensors), json.loads(Path(description).read_text(encoding="utf-8"))
    code = "auto_map" in json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    found = {
        **check_transformers(directory, probe, about, code),
        **check_onnx(directory, probe, about),
        **check_tokenizer(directory, about, code),
        **check_sentence_transformers(directory, probe, about, code),
    }
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
