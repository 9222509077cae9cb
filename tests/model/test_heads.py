"""Trap 6's part of the model (tied weights, masked positions only) and the classifiers against transformers."""

import pytest
import torch
import torch.nn.functional as F
from transformers import EuroBertForSequenceClassification, EuroBertForTokenClassification

from neobert.model.heads import SequenceClassifier, TokenClassifier

from .builders import PAD, VARIANTS, VOCAB, batch, masked_lm
from .test_encoder import reference


@pytest.mark.parametrize("masked", [0, 1, 7])
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_positions_alone_give_the_loss_and_gradients_of_all_logits(variant, masked):
    model = masked_lm(**VARIANTS[variant]).double()
    flat = batch([9, 14])
    chosen = torch.randperm(23)[:masked].sort().values
    labels = torch.full((23,), -100)
    labels[chosen] = torch.randint(5, VOCAB, (masked,))
    full = F.cross_entropy(model(*flat), labels, ignore_index=-100, reduction="sum")
    full.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    part = F.cross_entropy(model.logits(model.encoder(*flat)[chosen]), labels[chosen], reduction="sum")
    part.backward()
    torch.testing.assert_close(part, full)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_tied_decoder_is_the_embedding_table():
    model = masked_lm()
    assert model.decoder.weight is model.encoder.embeddings.weight
    assert model.decoder.bias is None
    untied = masked_lm(tie_word_embeddings=False, decoder_bias=True)
    assert untied.decoder.weight is not untied.encoder.embeddings.weight


def test_ngpt_logits_carry_their_scale():
    model = masked_lm(ngpt=True)
    hidden = torch.randn(3, 32)
    expected = (hidden @ model.encoder.embeddings.weight.T) * model.logit_scale()
    torch.testing.assert_close(model.logits(hidden), expected)


def padded_rows(flat, count):
    ids = torch.full((count, flat.max_seqlen), PAD)
    for i, (a, b) in enumerate(zip(flat.cu_seqlens[:-1], flat.cu_seqlens[1:], strict=True)):
        ids[i, : b - a] = flat.input_ids[a:b]
    return ids, (ids != PAD).long()


@pytest.mark.parametrize(("pooling", "theirs_name"), [("mean", "mean"), ("cls", "bos")])
def test_sequence_classifier_equals_transformers(pooling, theirs_name):
    encoder = masked_lm().encoder
    ours = SequenceClassifier(encoder, 3, pooling).eval()
    cfg = reference(encoder).config
    cfg.num_labels, cfg.classifier_pooling = 3, theirs_name
    theirs = EuroBertForSequenceClassification(cfg).eval()
    theirs.model.load_state_dict(reference(encoder).state_dict())
    theirs.dense.load_state_dict(ours.dense.state_dict())
    theirs.classifier.load_state_dict(ours.classifier.state_dict())
    flat = batch([9, 14, 6])
    ids, mask = padded_rows(flat, 3)
    torch.testing.assert_close(ours(*flat, 3), theirs(ids, attention_mask=mask).logits, atol=1e-5, rtol=1e-5)


def test_token_classifier_equals_transformers():
    encoder = masked_lm().encoder
    ours = TokenClassifier(encoder, 4).eval()
    cfg = reference(encoder).config
    cfg.num_labels = 4
    theirs = EuroBertForTokenClassification(cfg).eval()
    theirs.model.load_state_dict(reference(encoder).state_dict())
    theirs.classifier.load_state_dict(ours.classifier.state_dict())
    flat = batch([9, 14, 6])
    ids, mask = padded_rows(flat, 3)
    logits = theirs(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(ours(*flat), logits, atol=1e-5, rtol=1e-5)
