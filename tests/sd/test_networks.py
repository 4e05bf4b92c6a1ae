"""Teacher, student and target from one UNet: what they compute, and what a training changes."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from slam_edu import NoiseSchedule, SubPathDistiller
from slam_edu.ema import average_tensors
from slam_edu.embedding import gamma_embedding
from slam_edu.sd.components import TextCondition, empty_condition, text_condition, unet_output
from slam_edu.sd.config import SDConfig
from slam_edu.sd.networks import FullNetworks, LoraNetworks, build_networks
from tests.sd.tiny import PIPELINES, perturb

PROMPTS = ["a red seven on a yellow background", "handwritten 3", "a green four"]
GAMMA = torch.tensor([0.3, 0.9, 1.0])
ONE = torch.ones(3)

CONDITIONINGS = {
    "level": {"conditioning": "level"},
    "official": {"conditioning": "gamma", "coupling": "markov"},
    "smooth": {"conditioning": "gamma", "gamma_input": "smooth"},
}
of_all = pytest.mark.parametrize(
    ("model", "train", "place"),
    [("sd", "full", "official"), ("sd", "lora", "smooth"), ("xl", "lora", "level")],
)


@cache
def parts(model):
    """A tiny pipeline, and what its prompts and the empty one say; not to be changed."""
    pipeline = PIPELINES[model]()
    return pipeline, text_condition(pipeline, PROMPTS), empty_condition(pipeline).expand(3)


class Case:
    """Networks of a tiny pipeline, and what a step needs."""

    def __init__(self, model, train, place="level", **settings):
        settings = {"lora_rank": 4, **CONDITIONINGS[place], **settings}
        self.config = SDConfig(train=train, **settings)
        self.pipeline, self.cond, self.uncond = parts(model)
        schedule = NoiseSchedule.from_scheduler(self.pipeline.scheduler)
        self.distiller = SubPathDistiller(schedule, self.config.distill())
        generator = torch.Generator().manual_seed(5)
        self.x0 = torch.randn(3, 4, 8, 8, generator=generator)
        self.sample = self.distiller.draw(self.x0, generator)
        self.x = torch.randn(3, 4, 8, 8, generator=generator)
        self.t = torch.tensor([999, 499, 19])
        if place == "level":
            self.t = self.t - torch.tensor([0.5, 0.25, 0.0])
        self.stock = self.pipeline.unet
        self.networks = build_networks(self.config, copy.deepcopy(self.stock))

    @torch.no_grad()
    def outputs(self, gamma=GAMMA):
        """Teacher's, student's and target's."""
        asked = gamma if self.config.gamma_conditioned else None
        networks, call = self.networks, (self.x, self.t, self.cond)
        return (
            networks.teacher(*call), networks.student(*call, asked), networks.target(*call, asked)
        )  # fmt: skip

    def step(self):
        called = {name: getattr(self.networks, name) for name in ("teacher", "student", "target")}
        return self.distiller.step(
            self.x0, self.sample, cond=self.cond, uncond=self.uncond, **called
        )

    def gradients(self):
        """The step's loss and the trained parameters' gradients by name."""
        for p in self.networks.trained.values():
            p.grad = None
        loss = self.step().loss
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in self.networks.trained.items()}

    def train(self, updates):
        """A few updates, as the engine does them."""
        networks = self.networks
        optimizer = torch.optim.AdamW(networks.trained.values(), lr=1e-3, weight_decay=0.0)
        for _ in range(updates):
            optimizer.zero_grad()
            self.step().loss.backward()
            optimizer.step()
            detached = {n: p.detach() for n, p in networks.trained.items()}
            average_tensors(networks.average, detached, 0.5)

    def frozen(self):
        """Every tensor that is not to change, by name."""
        ours = {id(p) for p in (*self.networks.trained.values(), *self.networks.average.values())}
        modules = {key: m for key, m in vars(self.networks).items() if isinstance(m, nn.Module)}
        return {
            f"{key}.{name}": p
            for key, m in modules.items()
            for name, p in (*m.named_parameters(), *m.named_buffers())
            if id(p) not in ours
        }


def close(a, b, bound=1e-5):
    """As near as rounding, against the size of the values."""
    return (a - b).abs().max() <= bound * b.abs().max()


# -------------------------------------------------------------------- before the first update


@of_all
def test_the_student_starts_as_the_teacher(model, train, place):
    """To the last bit, at every gamma."""
    case = Case(model, train, place)
    assert isinstance(case.networks, FullNetworks if train == "full" else LoraNetworks)
    with torch.no_grad():
        stock = unet_output(case.stock, case.x, case.t, case.cond)
    teacher, *others = case.outputs()
    for output in others:
        assert torch.equal(output, teacher)
        assert not output.requires_grad
    assert close(teacher, stock)  # whose weights are laid out in another order
    networks = case.networks
    assert networks.trained.keys() == networks.average.keys()
    for name, p in networks.trained.items():
        assert torch.equal(p, networks.average[name])
        assert p.dtype == networks.average[name].dtype == torch.float32
        assert p.requires_grad
        assert not networks.average[name].requires_grad
    # Afterwards each has its own weights, and gamma changes those that are given it.
    perturb(case.networks)
    before, (teacher, student, target) = teacher, case.outputs()
    assert torch.equal(teacher, before)
    assert (student - teacher).abs().amax((1, 2, 3)).min() > 1e-3
    assert (target - teacher).abs().amax((1, 2, 3)).min() > 1e-3
    assert (target - student).abs().amax((1, 2, 3)).min() > 1e-3
    if place == "level":
        return
    at_one = case.outputs(ONE)
    assert torch.equal(at_one[0], teacher)
    for found, before in zip(at_one[1:], (student, target), strict=True):
        assert (found - before)[:2].abs().amax((1, 2, 3)).min() > 1e-5
        assert torch.equal(found[2], before[2])  # it was at gamma = 1 already


# -------------------------------------------------------------------- adapters


def test_the_adapters_layers():
    """'attention' and 'all', in every block, also of XL."""
    for model in ("sd", "xl"):
        small, large = (
            {
                name.removeprefix("unet.").split(".lora_")[0]
                for name in Case(model, "lora", lora_targets=targets).networks.trained
            }
            for targets in ("attention", "all")
        )
        assert small < large
        assert all(".attn1.to_" in name or ".attn2.to_" in name for name in small)
        # All linear and convolution layers but the first, the last and the time embedding.
        left = {
            name
            for name, module in parts(model)[0].unet.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) and name not in large
        } - {"conv_in", "conv_out"}
        assert all(name.startswith(("time_embedding", "add_embedding")) for name in left)


# -------------------------------------------------------------------- training


@of_all
def test_a_training_changes_the_trained_parameters_alone(model, train, place):
    """They alone have gradients; no byte of the base, and no bit of what the teacher says."""
    case = Case(model, train, place)
    frozen = {name: value.clone() for name, value in case.frozen().items()}
    trained = {name: p.detach().clone() for name, p in case.networks.trained.items()}
    average = {name: p.clone() for name, p in case.networks.average.items()}
    teacher = case.outputs()[0]
    case.train(2)
    _, grads = case.gradients()  # the first is zero for one factor of an adapter
    for name, grad in grads.items():
        assert torch.isfinite(grad).all(), name
        assert grad.abs().max() > 0, name
    for name, value in case.frozen().items():
        assert value.grad is None, name
        assert not value.requires_grad, name
        assert torch.equal(value, frozen[name]), name
    assert all(value.grad is None for value in case.networks.average.values())
    assert torch.equal(case.outputs()[0], teacher)
    for name in trained:
        assert not torch.equal(case.networks.trained[name], trained[name]), name
        assert not torch.equal(case.networks.average[name], average[name]), name


def test_checkpointing():
    """The same gradients, and less is kept for them."""
    kept, found = {}, {}
    for checkpointing in (False, True):
        case = Case("sd", "full", "official", gradient_checkpointing=checkpointing)
        saved = {}

        def pack(value, saved=saved):
            if not isinstance(value, nn.Parameter):
                saved[value.data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            case.networks.student(case.x, case.t, case.cond, GAMMA)
        kept[checkpointing] = sum(saved.values())
        loss, grads = case.gradients()
        found[checkpointing] = {"loss": loss, **grads}
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert kept[True] < 0.5 * kept[False]


# -------------------------------------------------------------------- Stable Diffusion XL


def test_a_step_of_xl_reads_all_of_its_condition():
    case = Case("xl", "lora", "official")
    perturb(case.networks)
    with torch.no_grad():
        loss = case.step().loss
    whole = case.cond
    for change in (
        TextCondition(whole.states.roll(1, 0), whole.pooled, whole.time_ids),
        TextCondition(whole.states, whole.pooled.roll(1, 0), whole.time_ids),
        TextCondition(whole.states, whole.pooled, whole.time_ids + 7),
    ):
        case.cond = change
        with torch.no_grad():
            changed = case.step().loss
        assert not torch.equal(changed, loss)


# -------------------------------------------------------------------- what is exported


@of_all
def test_a_plain_unet_is_the_network_at_one(model, train, place):
    case = Case(model, train, place, lora_alpha=6, gradient_checkpointing=True)
    perturb(case.networks)
    before = case.outputs(ONE)
    ways = [(1, "student", True), (2, "target", True), (2, "target", False)]
    for i, weights, fold in ways if place == "official" else ways[1:]:
        unet = case.networks.plain_unet(weights, fold)
        kept = place == "official" and not fold
        assert unet.config.time_cond_proj_dim == (256 if kept else None)
        assert (unet.time_embedding.cond_proj is not None) == kept
        with torch.no_grad():
            found = unet_output(
                unet, case.x, case.t, case.cond, gamma_embedding(ONE) if kept else None
            )
        assert close(found, before[i])
        assert not close(found, before[0], 1e-3)
        # Its keys are the teacher's, so that any diffusers loads it.
        odd = unet.state_dict().keys() ^ case.stock.state_dict().keys()
        assert odd == ({"time_embedding.cond_proj.weight"} if kept else set())
        assert not unet.training
        assert not unet.is_gradient_checkpointing
        assert not any(p.requires_grad for p in unet.parameters())
        assert all(p.is_contiguous() and p.device.type == "cpu" for p in unet.parameters())
        with torch.no_grad():
            for p in unet.parameters():
                p.zero_()
    for a, b in zip(case.outputs(ONE), before, strict=True):
        assert torch.equal(a, b)  # they were copies


# -------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("model", "train", "place", "autocast"),
    [("xl", "lora", "level", True), ("sd", "full", "official", False)],
)
def test_a_frozen_base_in_half_precision(model, train, place, autocast):
    """It alone is in bfloat16: trained parameters, averages and losses stay float32."""
    case = Case(model, train, place, frozen_dtype="bfloat16")
    if autocast:
        case.networks = build_networks(
            case.config, copy.deepcopy(case.stock),
            lambda: torch.autocast("cpu", torch.bfloat16),
        )  # fmt: skip
    frozen = case.frozen()
    assert {p.dtype for p in frozen.values() if isinstance(p, nn.Parameter)} == {torch.bfloat16}
    for named in (case.networks.trained, case.networks.average):
        assert {p.dtype for p in named.values()} == {torch.float32}
    exact = Case(model, train, place)
    for a, b in zip(case.outputs(), exact.outputs(), strict=True):
        assert close(a.float(), b, 0.05)
    loss, grads = case.gradients()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in grads.values())
    # Adapters are merged in full precision, not in the base's.
    assert {p.dtype for p in case.networks.plain_unet().parameters()} == {torch.float32}
