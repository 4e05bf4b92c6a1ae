"""The study of distilled digits: equal cost, reference, measures, results, command."""

import copy
import dataclasses
import functools
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from scipy import stats

from slam_edu import NoiseSchedule, SubPathDistiller, sample_ddim
from slam_edu.digits import load_student
from slam_edu.digits.evaluate import Evaluator, Setting, feature_distances
from slam_edu.digits.pipeline import check_files
from slam_edu.digits.students import command, gamma, measure, plan, reference, report, results
from slam_edu.digits.students.plan import (
    CD,
    CONTINUED,
    HALF_ONE,
    OFFICIAL,
    PAIRS,
    SETTINGS,
    SLAM,
    SMOOTH,
    START,
    STEPS,
    TIMES,
    Plan,
    identity,
)
from slam_edu.digits.students.results import Results, Row
from slam_edu.digits.students.ship import ship
from slam_edu.embedding import gamma_embedding
from slam_edu.prediction import network_predictor
from slam_edu.sampling import last, sample_consistency
from slam_edu.sd.components import LatentDiffusion, text_condition
from slam_edu.sd.networks import build_networks
from slam_edu.seeding import sample_generator
from slam_edu.solver import solve_pf_ode
from tests.digits.conftest import tiny_pipeline

COUNT, POINTS = 10, 4
SMALL = {"prompts": COUNT, "points": POINTS, "solver_steps": 4}


@functools.cache
def tiny():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny())


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(COUNT)


@pytest.fixture(scope="module")
def points(model, evaluator):
    return reference.solution_map(model, evaluator, points=POINTS, steps=4)


@pytest.fixture(scope="module")
def whole(model, evaluator, points):
    """A reference with the teacher's samples drawn in as many steps as there are."""
    features, latents = reference.teacher_samples(model, evaluator)
    return reference.Reference(
        model=model, evaluator=evaluator, map=points, teacher=features, latents=latents,
        cond=text_condition(model.pipeline, evaluator.prompts), guidance=3.0,
    )  # fmt: skip


def networks_of(name, seed=0, noise=0.0):
    """Networks of a student, its average moved a little away from the teacher."""
    config = Plan(**SMALL).config(name, seed)
    networks = build_networks(config, copy.deepcopy(tiny().unet))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in networks.average.values():
            p += noise * torch.randn(p.shape, generator=generator)
    return config, networks


# -------------------------------------------------------------------- plan


def test_students_differ_in_their_method_alone():
    configs = {name: Plan().config(name, 3) for name in SETTINGS}
    method = {"method", "conditioning", "coupling", "gammas", "hop", "reach", "gamma_input"}
    for name, config in configs.items():
        for setting, value in config.settings().items():
            if setting not in method:
                assert value == configs[CD].settings()[setting], (name, setting)
        assert config.seed == 3
        assert config.train == "full"
        assert config.distillation.guidance == plan.GUIDANCE
    assert len({json.dumps(identity(c)) for c in configs.values()}) == len(SETTINGS)


def test_the_students_are_what_they_are_called():
    steps = {name: Plan().config(name, 0).distill() for name in SETTINGS}
    assert (steps[CD].gammas, steps[CD].hop, steps[CD].reach) == ("one", "full", 1)
    assert steps[plan.RANDOM_HOP].hop == "random"
    assert (steps[SLAM].conditioning, steps[SLAM].coupling) == ("level", "linear")
    assert (steps[CONTINUED].reach, steps[CONTINUED].gammas) == (2, "one")
    assert (steps[OFFICIAL].conditioning, steps[OFFICIAL].coupling) == ("gamma", "markov")
    assert (steps[OFFICIAL].gammas, steps[HALF_ONE].gammas) == ("uniform", "half_one")
    assert Plan().config(SMOOTH, 0).gamma_input == "smooth"
    assert steps[SMOOTH].coupling == "linear"


def test_students_of_a_seed_get_the_same_draws():
    """What the engine draws depends on the seed and the sample's number alone."""
    schedule = NoiseSchedule.stable_diffusion()
    x0, drawn = torch.zeros(6, 4, 8, 8), {}
    for name in SETTINGS:
        config = Plan().config(name, 2)
        distiller = SubPathDistiller(schedule, config.distill())
        generators = [sample_generator(config.seed, n) for n in range(6)]
        drawn[name] = distiller.draw(x0, generators)
    for sample in drawn.values():
        assert torch.equal(sample.index, drawn[CD].index)
        assert torch.equal(sample.noise, drawn[CD].noise)
    assert not torch.equal(drawn[SLAM].gamma, drawn[CD].gamma)


def test_all_pairs_are_of_the_study():
    assert {name for pair in PAIRS for name in pair} == {*SETTINGS, START}
    assert all((name, CD) in PAIRS for name in (*SETTINGS, START) if name != CD)
    assert {(HALF_ONE, OFFICIAL), (SMOOTH, OFFICIAL)} <= set(PAIRS)


def test_solvers_have_the_students_numbers_of_calls():
    solvers = Plan().solvers
    assert len(solvers) == len(set(solvers))
    for sampler in ("ddim", "dpmpp_2m"):
        found = {s.calls: s for s in solvers if s.sampler == sampler and s.steps < 50}
        assert sorted(found) == [1, 2, 4, 8, 16]
        assert [found[n].steps for n in (1, 2, 4, 8, 16)] == [1, 1, 2, 4, 8]
        assert [found[n].guidance for n in (1, 2, 16)] == [0, 3, 3]
    assert solvers[0] == Setting(sampler="ddim", steps=50, guidance=3.0)
    assert {s.guidance for s in Plan(changes=("guidance=2",)).solvers} == {0, 2}


def test_a_runs_folder_says_what_it_is(tmp_path):
    small = Plan(**SMALL)
    config = small.config(SLAM, 1, tmp_path)
    assert config.out.startswith(str(tmp_path / "runs" / "slam-level-linear-1-"))
    assert config.data_path == small.config(CD, 2, tmp_path).data_path
    assert identity(config) == identity(small.config(SLAM, 5)) == small.settings(SLAM)
    other = small.replace(changes=("lr=1e-3",))
    assert other.config(SLAM, 1, tmp_path).out != config.out
    assert other.settings(SLAM)["lr"] == 1e-3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"names": ("SLAM",)}, "the name of a student is 'SLAM'"),
        ({"names": ()}, "the number of students is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"prompts": 1}, "prompts is 1; allowed: an integer from 2 to 2000"),
        ({"prompts": 30, "points": 31}, "points is 31; allowed: an integer from 1 to 30"),
        ({"solver_steps": 1}, "solver_steps is 1"),
        ({"changes": ("speed=2",)}, "'speed' is no setting"),
        ({"changes": ("lr=-1",)}, "lr is -1"),
        ({"samplers": ("euler",)}, "sampler is 'euler'"),
    ],
)
def test_wrong_plans(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Plan(**change)


def test_names_may_be_given_in_part():
    assert plan.short_names(None) == tuple(SETTINGS)
    assert plan.short_names(["official", "level", CD]) == (OFFICIAL, SLAM, CD)
    with pytest.raises(ValueError, match="'consistency' fits 2 students; allowed: one of 'consis"):
        plan.short_names(["consistency"])
    with pytest.raises(ValueError, match=r"'tree' fits 0 students; .*official"):
        plan.short_names(["tree"])


# -------------------------------------------------------------------- the reference


def test_levels_are_even_in_log_rho(model):
    levels = reference.even_levels(model.schedule, 499, 10)
    assert len(levels) == 12
    log_rho = levels.rho[:-1].double().log()
    assert torch.allclose(log_rho.diff(), log_rho.diff().mean(), atol=1e-5)
    # The level at t has t's own rho, or the network would be asked beyond the schedule.
    assert float(levels.rho[0]) == pytest.approx(float(model.schedule.rho[499]), rel=1e-6)
    assert float(levels.rho[-2]) == pytest.approx(float(model.schedule.rho[0]), rel=1e-6)
    assert (float(levels.alpha[-1]), float(levels.sigma[-1])) == (1, 0)
    with pytest.raises(ValueError, match="t is 0; allowed: an integer from 1 to 999"):
        reference.even_levels(model.schedule, 0, 10)


def test_the_map_is_the_guided_ode_and_twice_the_steps_change_little(model, evaluator, points):
    """Against another solver of a higher order, with many more steps."""
    t = 499
    x = points.x[t][:2]
    levels = reference.even_levels(model.schedule, t, 24)
    cond = model.encode_prompts(evaluator.prompts[:2])
    predictor = network_predictor(
        model.network, model.schedule, cond=cond, uncond=model.encode_prompts(["", ""]),
        guidance=3.0,
    )  # fmt: skip
    with torch.no_grad():
        for state in solve_pf_ode(predictor, x, levels, "heun"):
            exact = state.x

    def off(steps):
        ends = reference.solved(model, x, t, cond, 3.0, steps)
        return float((ends - exact).square().mean().sqrt())

    assert off(24) < off(8) < off(3)
    assert off(24) < 0.02 * float((x - exact).square().mean().sqrt())
    # What is recorded is the change from the map's own steps to twice as many.
    doubled = reference.solved(model, points.x[t], t, points.cond.states, 3.0, 8)
    change = float((points.end[t] - doubled).square().mean().sqrt())
    assert points.change[t] == pytest.approx(change, rel=1e-3)
    assert set(points.x) == set(points.end) == set(points.pixels) == set(TIMES)


def test_points_are_noisy_real_images(model, evaluator, points):
    x0 = model.encode_images(evaluator.asked.images[:POINTS])
    for i, t in enumerate(TIMES):
        level = model.schedule(t)
        noise = (points.x[t] - level.alpha * x0) / level.sigma
        wanted = torch.randn(x0.shape, generator=sample_generator(reference.MAP_NOISE, i))
        assert torch.allclose(noise, wanted, atol=1e-4)
        assert torch.equal(points.pixels[t], model.decode(points.end[t]))


def test_teacher_samples_are_guided_ddim(model, evaluator):
    setting = Setting(sampler="ddim", steps=3, guidance=2.0)
    noise = model.draw_noise(5, torch.Generator().manual_seed(0))
    cond = text_condition(model.pipeline, evaluator.prompts[:5])
    found = reference.teacher_latents(model, cond, noise, setting, batch=2)
    with torch.no_grad():
        wanted = last(
            sample_ddim(
                model.network, noise, model.schedule, 3, cond=cond.states,
                uncond=model.encode_prompts([""] * 5), guidance=2.0,
            )
        )  # fmt: skip
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_reference_is_kept_and_made_anew_for_another(model, evaluator, tmp_path):
    path, said = tmp_path / "map.safetensors", []
    times = (999, 259)
    options = {"points": POINTS, "times": times, "path": path, "show": said.append}
    first = reference.solution_map(model, evaluator, steps=3, **options)
    assert len(said) == len(times)
    again = reference.solution_map(model, evaluator, steps=3, **options)
    assert len(said) == len(times)
    for t in times:
        assert torch.equal(first.end[t], again.end[t])
        assert torch.equal(first.x[t], again.x[t])
        assert first.change == again.change
    reference.solution_map(model, evaluator, steps=2, **options)
    assert len(said) == 2 * len(times)
    path.write_bytes(path.read_bytes()[:100])
    reference.solution_map(model, evaluator, steps=2, **options)
    assert len(said) == 3 * len(times)
    with pytest.raises(ValueError, match="points is 11; allowed: an integer from 1 to 10"):
        reference.solution_map(model, evaluator, points=11)


# -------------------------------------------------------------------- measures


def test_errors_to_the_map_by_hand(model, points):
    shift = 0.25
    found = measure.map_errors(model, points, lambda x, t, cond: points.end[t] + shift, batch=99)
    for t in TIMES:
        assert found[f"latent_{t}"] == pytest.approx(shift, rel=1e-5)
        off = model.decode(points.end[t] + shift) - points.pixels[t]
        assert found[f"pixel_{t}"] == pytest.approx(float(off.square().mean().sqrt()), rel=1e-5)
    exact = measure.map_errors(model, points, lambda x, t, cond: points.end[t], batch=99)
    assert set(exact.values()) == {0.0}


@pytest.mark.parametrize("name", [CD, OFFICIAL, SMOOTH, CONTINUED])
def test_a_student_is_its_average_at_gamma_one(name, model, points):
    config, networks = networks_of(name, noise=0.01)
    with torch.no_grad():  # the student itself is not asked
        for p in networks.trained.values():
            p.zero_()
    distiller = SubPathDistiller(model.schedule, config.distill())
    wanted = measure.map_errors(
        model, points, lambda x, t, cond: distiller.predict(networks.target, x, t, cond)
    )
    found = measure.map_errors(model, points, measure.student_map(networks, config, model), 3)
    assert found == pytest.approx(wanted, rel=1e-4)
    noise = measure.study_noise(model, 5, 1)
    cond = points.cond[[0, 1, 2, 3, 0]]
    drawn = measure.student_latents(networks, config, model, cond, noise, 1, seed=1, batch=2)
    assert torch.allclose(drawn, distiller.predict(networks.target, noise, 999, cond), atol=1e-4)


def test_students_of_a_seed_draw_from_the_same_noise(model, points):
    config, networks = networks_of(CD)
    noise = measure.study_noise(model, 2, 1)
    assert torch.equal(noise, measure.study_noise(model, 2, 1))
    assert not torch.equal(noise, measure.study_noise(model, 2, 2))
    cond = points.cond[:2]
    drawn = measure.student_latents(networks, config, model, cond, noise, 4, seed=1)
    again = measure.student_latents(networks, config, model, cond, noise, 4, seed=1)
    assert torch.equal(drawn, again)
    fresh = measure.student_latents(networks, config, model, cond, noise, 4, seed=2)
    assert not torch.equal(drawn, fresh)
    wanted = last(
        sample_consistency(
            networks.target, noise, model.schedule, 4, conditioning="level", cond=cond,
            generator=sample_generator(measure.FRESH_NOISE, 1, 4),
        )
    )  # fmt: skip
    assert torch.allclose(drawn, wanted, atol=1e-5)


def test_all_numbers_of_a_student(whole):
    config, networks = networks_of(SLAM)
    found = measure.measure_student(networks, config, whole, seed=1, steps=(1, 2))
    names = {f"{name}_{n}" for name in measure.QUALITIES for n in (1, 2)}
    assert set(found) == names | {f"{k}_{t}" for k in ("latent", "pixel") for t in TIMES}
    assert all(math.isfinite(value) for value in found.values())
    noise = measure.study_noise(whole.model, COUNT, 1)
    images = whole.model.decode(
        measure.student_latents(networks, config, whole.model, whole.cond, noise, 2, seed=1)
    )
    judge = whole.evaluator
    assert found["right_2"] == float(judge.right(images).all(1).double().mean())
    features = judge.features(images)
    for name, others in (("teacher", whole.teacher), ("real", judge.reference)):
        frechet, kernel, _ = feature_distances(others, features)
        assert found[f"frechet_{name}_2"] == pytest.approx(frechet, rel=1e-6)
        assert found[f"kernel_{name}_2"] == pytest.approx(kernel, rel=1e-6, abs=1e-9)


def test_real_images_are_right_and_near_each_other(whole):
    found = measure.measure_real(whole)
    assert found["right_0"] >= 0.9
    assert found["frechet_real_0"] < found["frechet_teacher_0"]


def test_a_solver_is_named_by_its_calls(whole):
    setting = Setting(sampler="dpmpp_2m", steps=2, guidance=3.0)
    found = measure.measure_solver(setting, whole)
    assert set(found) == {f"{n}_4" for n in measure.QUALITIES} | {"latent_999", "pixel_999"}
    drawn = reference.teacher_latents(whole.model, whole.map.cond, whole.map.x[999], setting)
    off = (drawn - whole.map.end[999]).square().mean().sqrt()
    assert found["latent_999"] == pytest.approx(float(off), rel=1e-4)


# -------------------------------------------------------------------- gamma = 1


def test_the_features_of_gamma_one_by_hand():
    found = gamma.embedding_at_one(draws=300, seed=1)
    below = gamma_embedding(gamma.drawn_gammas(300, 1))
    one = torch.cat([torch.zeros(128), torch.ones(128)]).double()  # all sines 0, all cosines 1
    assert found["norm_one"] == pytest.approx(128**0.5)
    assert found["norm_mean"] == pytest.approx(128**0.5)
    away = (below - below.mean(0)).norm(dim=1)
    assert found["distance_one"] == pytest.approx(float((one - below.mean(0)).norm()))
    assert found["distance_mean"] == pytest.approx(float(away.mean()))
    assert found["nearest_one"] == pytest.approx(float((below - one).norm(dim=1).min()))
    pairs = torch.cdist(below, below) + 1e9 * torch.eye(300).double()
    assert found["nearest_median"] == pytest.approx(float(pairs.min(1).values.median()), rel=1e-6)
    cosine = below @ one / 128
    assert found["seen"] == float((cosine > 0.9).sum())
    assert gamma.cosines_to_one([1.0, 0.5]) == pytest.approx(
        [1.0, float(gamma_embedding(torch.tensor([0.5]).double()) @ one / 128)]
    )


def test_gamma_one_lies_at_the_edge_of_the_official_features():
    """What the lesson says: far from what is drawn, as far as the other edge, and rarely seen."""
    found = gamma.embedding_at_one()
    assert found["leverage_one"] > 1.5 * found["leverage_p99"]
    assert found["leverage_one"] == pytest.approx(found["leverage_zero"], rel=0.1)
    assert found["nearest_one"] > found["nearest_median"]
    assert found["seen"] < 10  # of 8,000
    near = gamma.cosines_to_one([0.9999, 0.999, 0.99])
    assert near[0] > 0.9
    assert near[2] < 0.6
    smooth = gamma.embedding_at_one("smooth")
    assert smooth["norm_one"] == 0
    assert math.isnan(smooth["seen"])
    with pytest.raises(ValueError, match="gamma_input is 'other'"):
        gamma.embedding_at_one("other")


def test_the_shift_is_the_weights_product_with_the_features():
    _, networks = networks_of(OFFICIAL, noise=0.02)
    found = gamma.shift_at_one(networks, draws=200)
    weight = networks.gamma_weight().double()
    below = gamma_embedding(gamma.drawn_gammas(200)) @ weight.T
    one = (gamma_embedding(torch.ones(1).double()) @ weight.T)[0]
    assert found["norm_one"] == pytest.approx(float(one.norm()), rel=1e-6)
    assert found["distance_one"] == pytest.approx(float((one - below.mean(0)).norm()), rel=1e-6)
    assert found["norm_time"] == pytest.approx((len(weight) / 2) ** 0.5)
    with pytest.raises(ValueError, match="no embedding of gamma"):
        gamma.shift_at_one(networks_of(CD)[1])


def test_errors_by_the_gamma_that_is_told(model, points):
    config, networks = networks_of(OFFICIAL, noise=0.03)
    found = gamma.errors_by_gamma(networks, config, model, points, (0.5, 0.99, 1.0))
    at_one = measure.map_errors(model, points, measure.student_map(networks, config, model))
    assert found[1.0] == pytest.approx(at_one, rel=1e-5)
    assert found[0.99]["latent_499"] != pytest.approx(at_one["latent_499"], rel=1e-4)
    # One that is told nothing useful gives the same everywhere.
    config, networks = networks_of(OFFICIAL)
    found = gamma.errors_by_gamma(networks, config, model, points, (0.5, 1.0))
    assert found[0.5] == pytest.approx(found[1.0], rel=1e-5)
    with pytest.raises(ValueError, match="conditioning is 'level'; allowed: 'gamma'"):
        gamma.errors_by_gamma(networks, Plan().config(CD, 0), model, points)


# -------------------------------------------------------------------- results and ratios

TEACHER = {"ddim": 0.9, "dpmpp_2m": 0.95}


def made(value=lambda name, seed, metric: 0.5, seeds=3, names=(START, *SETTINGS), small=SMALL):
    """A results file's content with made-up numbers."""
    chosen, rows = Plan(**small), []
    metrics = [f"{q}_{n}" for q in measure.QUALITIES for n in STEPS]
    metrics += [f"{k}_{t}" for k in measure.ERRORS for t in TIMES]
    shift = gamma.embedding_at_one(draws=150)
    for name in names:
        for seed in range(seeds):
            told = {f"{g:g}": {f"latent_{t}": 0.1 + g for t in TIMES} for g in (0.5, 0.99, 1.0)}
            rows.append(
                Row(
                    name=name, seed=seed, settings=chosen.settings(name), training=100.0,
                    measured={m: value(name, seed, m) for m in metrics}, measuring=10.0,
                    gamma={"shift": shift, "told": told} if "gamma" in name and name != CONTINUED
                    else {},
                )
            )  # fmt: skip
    for setting in chosen.solvers:
        n, base = setting.calls, 0.5 if setting.steps == 50 else 2.0
        measured = {f"{q}_{n}": base for q in measure.QUALITIES}
        measured |= {f"right_{n}": 0.99 if setting.steps == 50 else 0.4}
        measured |= {"latent_999": 0.9, "pixel_999": 0.3}
        rows.append(Row(name=setting.sampler, settings=identity(setting), measured=measured))
    about = results.about(chosen, "abc")
    floor = {f"{q}_0": 0.25 for q in measure.QUALITIES}
    change = {str(t): 0.001 for t in TIMES}
    return {
        "about": about, "floor": floor, "change": change,
        "rows": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip


def test_a_paired_ratio_by_hand():
    rng = np.random.default_rng(0)
    table = {(n, i): rng.uniform(0.5, 2) for n in (START, *SETTINGS) for i in range(3)}
    found = Results(made(lambda name, seed, _: table[name, seed]))
    ratio = found.ratio(SLAM, CD, "latent_499")
    logs = np.array([math.log(table[SLAM, i] / table[CD, i]) for i in range(3)])
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert ratio.value == pytest.approx(math.exp(logs.mean()))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert ratio.seeds == 3


def test_what_has_no_ratio():
    found = Results(made(lambda name, seed, m: -0.1 if (name, seed) == (SLAM, 1) else 0.2))
    assert found.ratio(SLAM, CD, "kernel_teacher_2") is None
    assert found.ratio(CONTINUED, CD, "kernel_teacher_2").value == pytest.approx(1)
    one = Results(made(seeds=1))
    assert math.isnan(one.ratio(SLAM, CD, "latent_999").low)
    without = Results(made(names=(CD,)))
    assert without.ratio(SLAM, CD, "latent_999") is None
    assert math.isnan(without.mean(SLAM, "latent_999"))


def test_all_right_still_has_a_ratio():
    found = Results(made(lambda name, seed, m: 1.0 if name == SLAM else 0.5))
    assert found.values(SLAM, "wrong_4")[0] == pytest.approx(0.5 / (COUNT + 1))
    assert found.values(CD, "wrong_4")[0] == pytest.approx((COUNT / 2 + 0.5) / (COUNT + 1))
    assert found.ratio(SLAM, CD, "wrong_4").value == pytest.approx(0.5 / (COUNT / 2 + 0.5))


def test_rows_of_other_settings_are_passed_over():
    content = made()
    for row in content["rows"]:
        if row["name"] == SLAM:
            row["settings"] = {**row["settings"], "lr": 0.123}
    found = Results(content)
    assert SLAM not in found.names
    assert found.names == [START, *(name for name in SETTINGS if name != SLAM)]
    assert len(found.rows) == len(content["rows"])


def test_the_results_file_comes_back(tmp_path):
    path, content = tmp_path / "students.json", made()
    results.write(path, content)
    first = path.read_bytes()
    back = results.read(path, content["about"])
    results.write(path, back)
    assert path.read_bytes() == first
    assert {Row(**r).key for r in back["rows"]} == {Row(**r).key for r in content["rows"]}
    # A new row is added, one with the same key takes the older one's place.
    row = Row(**back["rows"][0])
    more = [dataclasses.replace(row, seed=7), dataclasses.replace(row, skipped=5)]
    results.add(path, content["about"], more)
    after = [Row(**r) for r in results.read(path)["rows"]]
    assert len(after) == len(back["rows"]) + 1
    assert [r.skipped for r in after if r.key == row.key] == [5]


def test_wrong_results_files(tmp_path):
    path, content = tmp_path / "students.json", made()
    with pytest.raises(FileNotFoundError, match="measures it"):
        results.read(path)
    results.write(path, content)
    other = {**content["about"], "prompts": 20}
    with pytest.raises(ValueError, match=r"another study \(prompts: 10 there, 20 here\)"):
        results.read(path, other)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match=r"students.json' cannot be read .* move it away"):
        results.read(path)
    path.write_text('{"rows": []}')
    with pytest.raises(ValueError, match="cannot be read"):
        results.read(path)


# -------------------------------------------------------------------- the report


def quality(name, seed, metric):
    """SLAM, gamma = 2, is the best; the official student the worst."""
    best = {CONTINUED: 0.5, SLAM: 0.8, OFFICIAL: 4.0}.get(name, 1.0)
    if metric.startswith("right"):
        return {CONTINUED: 0.985, OFFICIAL: 0.1}.get(name, 0.9)
    return best * (1 + 0.01 * seed)


def test_the_report_holds_the_numbers(tmp_path):
    content = made(quality)
    report.write_report(Results(content), tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert f"smallest error to the map: {CONTINUED}." in text
    assert f"- met: {CONTINUED}, 4 steps, 98.5% as asked for; the teacher's 50 steps 99.0%" in text
    assert f"- not met: {CD}, 4 steps, 90.0%" in text
    assert f"- met: {CONTINUED} is ahead of every solver" in text
    assert "clearly below 1 in 7 of 7" in text
    rate = "98.5 ± 2.2"  # the binomial standard error of 30 images
    [row] = [line for line in text.splitlines() if line.startswith(f"| {CONTINUED} | {rate}")]
    assert row.count(rate) == 4
    assert f"| {CONTINUED} / {CD} | 0.50 [0.50, 0.50] |" in text
    assert f"| {OFFICIAL} / {CD} | 4.00 [4.00, 4.00] |" in text
    assert "| teacher, DDIM | 40.0 ± 15.5 |" in text
    assert "change its ends by 0.001" in text
    assert f"| {OFFICIAL} | 0.600 | 1.090 | 1.100 |" in text  # told .5, .99, 1
    for name in ("calls", "map", "ratios", "gamma"):
        assert f"]({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "grid.png" not in text  # the runs are not there
    assert "Still to run" not in text


def test_a_report_of_an_unfinished_study(tmp_path):
    content = made(names=(CD,), seeds=1)
    content["rows"] = [r for r in content["rows"] if r["name"] == CD]
    report.write_report(Results(content), tmp_path, figures=False)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert f"Still to run: {START}; {plan.RANDOM_HOP}; {SLAM}" in text
    assert "## Targets" not in text
    content["rows"] = []
    report.write_report(Results(content), tmp_path)


def test_ahead_of_solvers_with_as_many_calls_or_fewer():
    found = Results(made(quality))
    assert report.ahead_of_solvers(found, CONTINUED) == dict.fromkeys(STEPS, True)
    assert report.ahead_of_solvers(found, OFFICIAL) == dict.fromkeys(STEPS, False)

    content = made(quality)
    for row in content["rows"]:  # a solver that is best at 8 calls
        if row["name"] == "dpmpp_2m" and "right_8" in row["measured"]:
            row["measured"]["frechet_teacher_8"] = 0.01
    found = report.ahead_of_solvers(Results(content), CONTINUED)
    assert found == {1: True, 2: True, 4: True, 8: False}


# -------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def tiny_plan(tmp_path_factory):
    """A study of a tiny teacher and two students, of two updates each."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    tiny().save_pretrained(folder)
    return Plan(
        changes=(f"teacher={folder}", "max_samples=24", "updates=2", "batch=4"),
        names=(CD, OFFICIAL), seeds=1, samplers=(), **SMALL,
    )  # fmt: skip


@pytest.fixture
def run_command(tiny_plan, monkeypatch):
    """The command on the tiny study, without figures, and the jobs that were run."""
    asked, real = [], command.run_job
    monkeypatch.setattr(report, "draw_figures", lambda results, out: {})
    monkeypatch.setattr(command, "QUICK", tiny_plan)
    monkeypatch.setattr(command, "run_job", lambda job: asked.append(job) or real(job))

    def run(out, *more):
        asked.clear()
        return command.main(["--quick", "--out", str(out), "--workers", "1", *more])

    command._reference.cache_clear()
    yield run, asked
    command._reference.cache_clear()


@pytest.fixture(scope="module")
def study(tiny_plan, tmp_path_factory):
    """The folder of the finished study."""
    out = tmp_path_factory.mktemp("study") / "made"
    before, command.QUICK = command.QUICK, tiny_plan
    try:
        assert command.main(["--quick", "--out", str(out), "--workers", "1"]) == 0
    finally:
        command.QUICK = before
    return out


@pytest.fixture
def begun(study, tmp_path):
    """The folder of a study that has its data and its reference, and no rows."""
    out = tmp_path / "begun"
    for path in study.iterdir():
        if path.suffix == ".safetensors":
            shutil.copyfile(path, out.with_name(path.name))
    out.mkdir()
    for path in tmp_path.glob("*.safetensors"):
        path.rename(out / path.name)
    shutil.copytree(study / "cache", out / "cache")
    return out


def test_the_command_trains_measures_and_reports(study):
    found = Results(results.read(study / "students.json"))
    assert found.names == [START, CD, OFFICIAL]
    assert [setting.steps for setting, _ in found.solvers()] == [50]
    row = found.student(OFFICIAL)[0]
    assert all(math.isfinite(value) for value in row.measured.values())
    assert set(row.gamma["told"]) == {f"{g:g}" for g in gamma.TOLD}
    assert row.gamma["shift"]["norm_mean"] > 0
    assert row.training > 0
    assert not found.student(CD)[0].gamma
    assert found.student(CD)[0].measured != found.student(START)[0].measured
    text = (study / "report.md").read_text("utf-8")
    for name in ("calls", "map", "loss", "grid", "ratios", "gamma"):
        assert f"]({name}.png)" in text, name


def test_the_command_makes_what_is_missing(study, run_command, tmp_path, capsys):
    run, asked = run_command
    out = tmp_path / "copy"
    shutil.copytree(study, out)
    content = results.read(out / "students.json")
    before = Results(content).student(CD)[0]
    content["rows"] = [r for r in content["rows"] if r["name"] != CD]
    results.write(out / "students.json", content)
    assert run(out) == 0, capsys.readouterr().err
    assert [job.what for job in asked] == [CD]
    again = Results(results.read(out / "students.json")).student(CD)[0]
    assert again.measured == pytest.approx(before.measured, rel=1e-3, abs=1e-4)
    assert run(out, "--report-only") == 0
    assert not asked
    # Another study in the same folder is refused.
    assert run(out, "--prompts", "9") == 2
    assert "prompts: 10 there, 9 here" in capsys.readouterr().err


def test_an_interrupt_keeps_what_is_finished(begun, run_command, monkeypatch, capsys):
    run, _ = run_command
    made_up = rows_by_key()

    def stops(job):
        if job.what == CD:
            raise KeyboardInterrupt
        return made_up(job)

    monkeypatch.setattr(command, "run_job", stops)
    term = signal.getsignal(signal.SIGTERM)
    assert run(begun) == 130
    assert signal.getsignal(signal.SIGTERM) == term
    assert Results(results.read(begun / "students.json")).names == [START]
    assert "goes on from there" in capsys.readouterr().err


def test_a_training_that_fails_stops_no_other(begun, run_command, monkeypatch, capsys):
    run, _ = run_command
    made_up = rows_by_key()
    monkeypatch.setattr(
        command, "run_job", lambda job: "it blew up" if job.what == CD else made_up(job)
    )
    assert run(begun) == 1
    assert "it blew up" in capsys.readouterr().err
    assert Results(results.read(begun / "students.json")).names == [START, OFFICIAL]


def rows_by_key():
    """Rows with made-up numbers for jobs."""
    made_up = [Row(**row) for row in made(seeds=1)["rows"]]

    def row_of(job):
        steps = getattr(job.what, "steps", None)
        [row] = [r for r in made_up if r.name == job.key[0] and r.settings.get("steps") == steps]
        return dataclasses.replace(row, settings=json.loads(job.key[2]))

    return row_of


def test_a_diverged_training_is_a_sentence(tiny_plan, study, tmp_path):
    diverging = tiny_plan.replace(changes=(*tiny_plan.changes, "lr=1e30", "max_skipped=0"))
    shutil.copytree(study / "cache", tmp_path / "cache")
    found = command.run_job(command.Job(plan=diverging, out=tmp_path, what=CD))
    assert isinstance(found, str)
    assert found.startswith(f"{CD}, seed 0: ")


def test_processes_give_the_same_and_an_error_ends_them():
    assert sorted(command._made(math.factorial, [3, 4, 5], 2)) == [6, 24, 120]
    with pytest.raises(ValueError, match="factorial"):
        list(command._made(math.factorial, [3, -1, 5], 2))


def test_a_killed_process_is_said():
    with pytest.raises(RuntimeError, match="one of 2 processes was killed"):
        list(command._made(os._exit, [9, 9], 2))


# -------------------------------------------------------------------- what is shipped


def test_the_shipped_folder_is_the_student(study, run_command, tmp_path, capsys):
    from slam_edu.sd.run import load_run

    command_run, _ = run_command
    to = tmp_path / "student"
    assert command_run(study, "--ship", "official", "0", "--to", str(to)) == 0
    found = Results(results.read(study / "students.json"))
    run = load_run(found.plan.config(OFFICIAL, 0, study).out)
    assert sorted(p.name for p in to.iterdir()) == [
        "README.md", "checksums.json", "scheduler", "training", "unet",
    ]  # fmt: skip
    check_files(to)
    weights = to / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 2.2 * sum(p.numel() for p in run.pipeline.unet.parameters())
    card = (to / "README.md").read_text("utf-8")
    right = found.student(OFFICIAL)[0].measured["right_4"]
    assert f"| this student, 4 steps | 4 | {right:.1%} |" in card
    settings = (to / "training" / "config.json").read_text("utf-8")
    assert str(study) not in card + settings
    assert json.loads(settings)["student"] == OFFICIAL
    assert (to / "training" / "log.csv").read_text("utf-8").startswith("update,loss")

    # The stock pipeline that it gives with the teacher's other parts.
    pipeline = load_student(to, teacher=run.pipeline)
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    assert pipeline.vae is run.pipeline.vae
    assert pipeline.unet.config.time_cond_proj_dim is None  # gamma = 1 is folded in
    model = LatentDiffusion(run.pipeline)
    prompts, noise = ["a red seven", "a two"], measure.study_noise(model, 2, 0)
    drawn = pipeline(
        prompts, num_inference_steps=1, guidance_scale=1.0, latents=noise.clone(),
        output_type="latent",
    ).images  # fmt: skip
    cond = text_condition(run.pipeline, prompts)
    wanted = measure.student_latents(run.networks, run.config, model, cond, noise, 1)
    scale = float(wanted.square().mean().sqrt())
    assert float((drawn - wanted).square().mean().sqrt()) < 0.02 * scale  # half precision
    images = pipeline(
        prompts, num_inference_steps=4, guidance_scale=1.0, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert images.shape == (2, 32, 32, 3)

    # It may take an earlier student's place, and no other folder's.
    assert command_run(study, "--ship", CD, "0", "--to", str(to)) == 0
    check_files(to)
    assert command_run(study, "--ship", "level", "0", "--to", str(to)) == 2
    assert "is not among the results; allowed: no seed yet" in capsys.readouterr().err
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="other files, which would be lost"):
        ship(found, study, OFFICIAL, 0, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_student_that_is_too_large_is_not_shipped(study, tmp_path, monkeypatch):
    monkeypatch.setattr("slam_edu.digits.students.ship.LARGEST", 1000)
    found = Results(results.read(study / "students.json"))
    with pytest.raises(ValueError, match="allowed: at most 1,000"):
        ship(found, study, CD, 0, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_damaged_student_is_not_loaded(study, tmp_path, model):
    found = Results(results.read(study / "students.json"))
    ship(found, study, CD, 0, tmp_path / "student")
    config = tmp_path / "student" / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValueError, match="is not the file that was shipped"):
        load_student(tmp_path / "student", teacher=model.pipeline)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_student(tmp_path / "none", teacher=model.pipeline)


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--workers", "0"], ["--set"]])
def test_wrong_options(option):
    with pytest.raises(SystemExit):
        command.main(option)


def test_wrong_values_end_the_command_with_a_sentence(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), "--only", "tree"]) == 2
    assert "'tree' fits 0 students" in capsys.readouterr().err
    assert command.main(["--out", str(tmp_path), "--set", "lr=-1"]) == 2
    assert "lr is -1" in capsys.readouterr().err
    assert command.main(["--out", str(tmp_path), "--ship", "level", "x"]) == 2
    assert command.main(["--out", str(tmp_path), "--report-only"]) == 2
    assert "measures it" in capsys.readouterr().err
