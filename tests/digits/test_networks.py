"""The tokenizer, which has a token for every word and for everything else, and the builders."""

import itertools

import pytest
import torch

from slam_edu.digits.captions import FULL, PARTIAL, all_words, caption
from slam_edu.digits.colours import NAMES
from slam_edu.digits.networks import (
    MAX_LENGTH,
    TextToLatents,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from slam_edu.sd.components import token_ids
from tests.digits.conftest import same_weights

CAPTIONS = sorted(
    caption(wording, digit, stroke, background)
    for wording in FULL + PARTIAL
    for digit in range(10)
    for stroke, background in itertools.permutations(NAMES, 2)
)
#: Words and letters that no caption has.
ODD = [
    "", " ", "purpleish", "a seventyseven", "Xylophone!?", "über-café", "七つの赤", "😀 seven",
    "\t\n", "a" * 200, "don't", "100 %", "<|startoftext|>", "\u200b", "Ω≈ç√∫", "ı İ ß",
]  # fmt: skip


# -------------------------------------------------------------------- tokenizer


def inner(tokenizer, text):
    """Token ids without those of start and end."""
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return ids[1:-1]


def test_every_word_of_the_captions_is_one_token(tokenizer):
    found = {}
    for word in all_words():
        ids = inner(tokenizer, word)
        assert len(ids) == 1, word
        found[word] = ids[0]
        assert tokenizer.convert_ids_to_tokens(ids) == [f"{word}</w>"]
    assert len(set(found.values())) == len(found)
    # In a sentence they are the same tokens.
    assert inner(tokenizer, "handwritten 7, red on yellow") == [
        found[word] for word in ("handwritten", "7", ",", "red", "on", "yellow")
    ]


def test_captions_round_trip(tokenizer):
    texts = sorted(set(CAPTIONS))
    assert len(texts) > 3000
    ids = tokenizer(texts).input_ids
    back = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [text.replace(" ,", ",") for text in back] == texts
    longest = max(map(len, ids))
    assert longest <= MAX_LENGTH  # no caption is cut off
    assert longest == 11  # "a handwritten six in red ink on blue paper", start and end


@pytest.mark.parametrize("text", ODD)
def test_anything_else_falls_back_to_letters(tokenizer, text):
    """No text has an unknown token, which would be the end token in the middle."""
    ids = inner(tokenizer, text)
    assert all(0 <= i < len(tokenizer) for i in ids)
    assert tokenizer.eos_token_id not in ids
    padded = token_ids(tokenizer, [text])
    assert padded.shape == (1, MAX_LENGTH)
    assert 0 <= padded.min()
    assert padded.max() < len(tokenizer)


@pytest.mark.parametrize("text", ["purpleish", "xylophone", "über-café", "七つの赤", "😀"])
def test_other_words_keep_all_their_letters(tokenizer, text):
    back = tokenizer.decode(inner(tokenizer, text), skip_special_tokens=True)
    assert back.replace(" ", "") == text.replace(" ", "")


def test_capitals_are_read_as_small_letters(tokenizer):
    assert inner(tokenizer, "A Red  SEVEN") == inner(tokenizer, "a red seven")


def test_padding_and_truncation(tokenizer):
    assert tokenizer.model_max_length == MAX_LENGTH == 24
    texts = ["", "a red seven", "red " * 22, "red " * 23, "blue " * 500]
    ids = token_ids(tokenizer, texts)
    assert ids.shape == (5, 24)
    assert ids.dtype == torch.int64
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    [red], [blue] = inner(tokenizer, "red"), inner(tokenizer, "blue")
    assert ids[0].tolist() == [bos, eos] + [pad] * 22
    assert ids[1].tolist() == [bos, *inner(tokenizer, "a red seven"), eos] + [pad] * 19
    assert ids[2].tolist() == ids[3].tolist() == [bos] + [red] * 22 + [eos]
    assert ids[4].tolist() == [bos] + [blue] * 22 + [eos]
    assert token_ids(tokenizer, tuple(texts)).equal(ids)


def test_a_tokenizer_is_the_same_when_built_again_and_when_saved(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = CAPTIONS[::50] + ODD
    for other in (build_tokenizer(), loaded):
        assert isinstance(other, CLIPTokenizer)
        assert other.get_vocab() == tokenizer.get_vocab()
        assert other.model_max_length == 24
        assert other(texts).input_ids == tokenizer(texts).input_ids
        assert token_ids(other, texts).equal(token_ids(tokenizer, texts))


# -------------------------------------------------------------------- builders

BUILD = {
    "vae": lambda seed, tokenizer: build_vae(seed, (8, 8, 16)),
    "unet": lambda seed, tokenizer: build_unet(seed, (16, 32), text_width=16),
    "text": lambda seed, tokenizer: build_text_encoder(tokenizer, seed, 16),
}


@pytest.mark.parametrize("part", BUILD)
def test_builders_draw_from_their_seed_alone(part, tokenizer):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    first = BUILD[part](3, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert same_weights(first, BUILD[part](3, tokenizer))
    assert not same_weights(first, BUILD[part](4, tokenizer))


def test_the_shapes_are_stable_diffusions(tokenizer):
    vae = build_vae(0, (8, 8, 16)).eval()
    images = torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        assert latents.shape == (2, 4, 8, 8)
        assert vae.decode(latents).sample.shape == images.shape
    encoder = build_text_encoder(tokenizer, width=16).eval()
    assert encoder.config.vocab_size == len(tokenizer)
    states = encoder(input_ids=token_ids(tokenizer, ["a seven", ""])).last_hidden_state
    assert states.shape == (2, 24, 16)
    unet = build_unet(0, (16, 32), text_width=16)
    output = unet(torch.zeros(2, 4, 8, 8), torch.tensor([0, 999]), states).sample
    assert output.shape == (2, 4, 8, 8)
    blocks = [type(block).__name__ for block in [*unet.down_blocks, *unet.up_blocks]]
    assert blocks == ["CrossAttnDownBlock2D"] * 2 + ["CrossAttnUpBlock2D"] * 2
    heads = {block.attentions[0].transformer_blocks[0].attn2.heads for block in unet.down_blocks}
    assert heads == {4}


def test_text_to_latents_is_the_unet_on_the_encoders_states(tokenizer):
    encoder = build_text_encoder(tokenizer, 1, 16).eval()
    unet = build_unet(1, (16, 32), text_width=16).eval()
    network = TextToLatents(unet, encoder)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 700])
    ids = token_ids(tokenizer, ["a red seven", ""])
    output = network(x, t, ids)
    states = encoder(ids)[0]
    torch.testing.assert_close(output, unet(x, t, states, return_dict=False)[0])
    # Each input matters, and the gradient reaches both networks.
    for other in ((x + 0.1, t, ids), (x, t + 100, ids), (x, t, ids.flip(0))):
        assert (network(*other) - output).abs().amax((1, 2, 3)).min() > 1e-5
    output.square().mean().backward()
    assert unet.conv_in.weight.grad.abs().max() > 0
    assert max(p.grad.abs().max() for p in encoder.parameters() if p.grad is not None) > 0
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {
        "unet", "text_encoder"
    }  # fmt: skip


def test_a_words_state_does_not_depend_on_later_words(tokenizer):
    encoder = build_text_encoder(tokenizer, 0, 16).eval()
    with torch.no_grad():
        a, b = encoder(token_ids(tokenizer, ["a red seven", "a red two"]))[0]
    torch.testing.assert_close(a[:3], b[:3])
    assert (a[3:] - b[3:]).abs().amax(1).min() > 1e-3
