"""Numbers that the official functions printed (`golden/splam_step.json`), each one reproduced.

In the file ``start_timesteps`` is the noisy end t, ``timesteps`` or ``end_timesteps`` the clean s.
"""

import pytest
import torch

from slam_edu import (
    OFFICIAL,
    DistillConfig,
    NoiseSchedule,
    Prediction,
    SubPathDistiller,
    SubPathSample,
    boundary_scalings,
    consistency_timesteps,
    ddim_step,
    gamma_embedding,
    guidance_scale_embedding,
    interpolate,
    sub_level,
    to_prediction,
    update_ema,
)
from tests.helpers import assert_near, column, golden

F32, F64 = torch.float32, torch.float64
# What float32 algebra of a few operations may lose on values of order one.
CLOSE = {F64: {"rtol": 1e-9, "atol": 1e-15}, F32: {"rtol": 2e-5, "atol": 2e-6}}
both = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


def tensors(dtype: torch.dtype = F64) -> dict[str, torch.Tensor]:
    """The inputs that sections share: integers as they are, the others in ``dtype``."""
    return {key: as_tensor(value, dtype) for key, value in golden()["tensors"].items()}


def as_tensor(value: object, dtype: torch.dtype) -> torch.Tensor:
    found = torch.tensor(value)
    return torch.tensor(value, dtype=dtype) if found.is_floating_point() else found


def test_schedule():
    g = golden()["schedule"]
    exact = NoiseSchedule.stable_diffusion(F64)
    single = NoiseSchedule.stable_diffusion(F32)
    t = g["timesteps"]
    assert_near(exact.alpha**2, g["alphas_cumprod_f64_full"])
    assert_near(exact.sigma**2, [1 - abar for abar in g["alphas_cumprod_f64_full"]])
    assert_near(exact(torch.tensor(t)).alpha ** 2, g["alphas_cumprod_f64"])
    # The official float32 table is off by up to the last number; ours may not be further off.
    bound = g["max_abs_diff_f32_f64"]
    assert_near(single.alpha**2, g["alphas_cumprod_f64_full"], rtol=0, atol=bound)
    assert_near(single.alpha[t] ** 2, g["alphas_cumprod_f32"], rtol=0, atol=2 * bound)


@both
def test_scalings_for_boundary_conditions(dtype):
    g = golden()["scalings_for_boundary_conditions"]
    c_skip, c_out = boundary_scalings(
        torch.tensor(g["t"]), g["sigma_data"], g["timestep_scaling"], dtype=dtype
    )
    assert_near(c_skip, g["c_skip"], **CLOSE[dtype])
    assert_near(c_out, g["c_out"], **CLOSE[dtype])
    assert_near(boundary_scalings(torch.tensor(g["t"]), dtype=dtype)[0], c_skip, rtol=0)


@both
def test_ddim_solver(dtype):
    schedule = NoiseSchedule.stable_diffusion(dtype)
    g = golden()["ddim_solver"]
    assert sorted(map(int, g)) == [20, 25, 50, 100]
    for n, solver in g.items():
        grid = schedule.subpaths(int(n))
        assert grid.k == solver["topk"]
        assert grid.t.tolist() == solver["timesteps"]
        assert grid.s.tolist() == solver["end_timesteps"]
        rtol = CLOSE[dtype]["rtol"]
        assert_near(schedule(grid.t).alpha ** 2, solver["alpha_cumprods"], rtol=rtol)
        assert_near(schedule(grid.s).alpha ** 2, solver["alpha_cumprods_prev"], rtol=rtol)


@both
def test_predicted_origin(dtype):
    schedule, inputs = NoiseSchedule.stable_diffusion(dtype), tensors(dtype)
    g = golden()["predicted_origin"]
    level = schedule(inputs["start_timesteps"])
    for kind in ("epsilon", "v_prediction"):
        ours = to_prediction(inputs["model_output"], inputs["sample"], level, kind)
        assert_near(ours.x0, g[kind], **CLOSE[dtype])


@both
def test_predicted_origin_splam(dtype):
    schedule, inputs = NoiseSchedule.stable_diffusion(dtype), tensors(dtype)
    output, x = inputs["model_output"][:1], inputs["sample"][:1]
    g = golden()["predicted_origin_splam"]
    assert len(g["cases"]) == 28
    for case in g["cases"]:
        t, s = schedule(case["start"]), schedule(case["end"])
        gamma = torch.tensor(case["gamma"], dtype=dtype)
        markov = sub_level(t, s, gamma, "markov")
        linear = sub_level(t, s, gamma, "linear")
        rtol = CLOSE[dtype]["rtol"]
        assert_near(markov.sigma, case["effective_sigma"], rtol=rtol)
        assert_near(linear.sigma, case["sigma_deterministic_drift_scaled"], rtol=rtol)
        assert_near(to_prediction(output, x, markov).x0, case["pred_x0"], **CLOSE[dtype])
    # Refused there; here it is the general formula (tests/test_prediction.py).
    assert g["v_prediction"].startswith("ValueError")
    ends = schedule(inputs["start_timesteps"]), schedule(inputs["end_timesteps"])
    level = sub_level(*ends, inputs["gamma"], "markov")
    ours = to_prediction(inputs["model_output"], inputs["sample"], level)
    assert_near(ours.x0, g["batched"]["pred_x0"], **CLOSE[dtype])


@both
def test_ddim_step(dtype):
    schedule, inputs = NoiseSchedule.stable_diffusion(dtype), tensors(dtype)
    g = golden()["ddim_step"]
    _, s = schedule.subpaths(50).ends(inputs["index"])
    assert s.tolist() == inputs["end_timesteps"].tolist()
    ours = ddim_step(Prediction(inputs["sample"], inputs["model_output"]), schedule(s))
    assert_near(ours, g["x_prev"], **CLOSE[dtype])


@both
def test_inter_input(dtype):
    schedule, inputs = NoiseSchedule.stable_diffusion(dtype), tensors(dtype)
    case = golden()["one_step"]["cases"][0]
    g = golden()["inter_input"]
    ours = interpolate(
        as_tensor(case["noisy_model_input"], dtype),
        as_tensor(case["x_prev"], dtype),
        schedule(inputs["start_timesteps"]),
        schedule(inputs["end_timesteps"]),
        inputs["gamma"],
    )
    assert_near(ours, g["inter_input"], **CLOSE[dtype])


def test_guidance_scale_embedding():
    g = golden()["guidance_scale_embedding"]
    assert len(g["cases"]) == 21
    for case in g["cases"]:
        w, dim = case["w"], case["dim"]
        exact = guidance_scale_embedding(torch.tensor([w], dtype=F64), dim)[0]
        single = guidance_scale_embedding(torch.tensor([w], dtype=F32), dim)[0]
        assert exact.shape == (dim,)
        # sin near a multiple of pi is 0 but for the angle's own rounding.
        if case["f64"] is not None:
            assert_near(exact, case["f64"], rtol=1e-9, atol=1e-11)
        else:
            for place, value in case["f64_at"].items():
                assert_near(exact[int(place)], value, rtol=1e-9, atol=1e-11)
            assert_near(exact.sum(), case["f64_sum"], rtol=1e-9, atol=1e-10)
        assert (single - exact).abs().max() <= max(2 * case["max_abs_diff_f32_f64"], 1e-6)
        if case["gamma"] is not None:
            through = gamma_embedding(torch.tensor([case["gamma"]], dtype=F64), dim)[0]
            assert_near(through, exact, rtol=0, atol=1e-9)


class OfficialNets:
    """The networks of the section ``one_step``, with what each returned."""

    def __init__(self, embedding: bool) -> None:
        self.embedding = embedding
        self.outputs: dict[str, list] = {"teacher": [], "student": [], "target": []}

    def teacher(self, x, t, cond):
        return self.keep("teacher", x, 0.3, 0.001 * t.to(x), 0.2 * cond, None)

    def student(self, x, t, cond, gamma):
        return self.keep("student", x, 0.35, 0.0009 * t.to(x), 0.1 * cond, gamma)

    def target(self, x, t, cond, gamma):
        return self.keep("target", x, 0.34, 0.00095 * t.to(x), 0.1 * cond, gamma)

    def keep(self, name, x, scale, time, condition, gamma):
        output = scale * torch.tanh(x) + column(time, x) + column(condition, x)
        if self.embedding and gamma is not None:
            mean = gamma_embedding(gamma)[:, 96:128].mean(dim=1)
            output = output + 0.5 * column(mean, x)
        self.outputs[name].append(output)
        return output


@both
def test_one_step(dtype):
    g = golden()["one_step"]
    inputs = g["inputs"]
    x0 = torch.tensor(inputs["latents"], dtype=dtype)
    sample = SubPathSample(
        index=torch.tensor(inputs["index"]),
        gamma=torch.tensor(inputs["gamma"], dtype=dtype),
        noise=torch.tensor(inputs["noise"], dtype=dtype),
    )
    cond = torch.tensor(inputs["context_per_sample"], dtype=dtype)
    uncond = torch.full_like(cond, inputs["uncond_context"])
    assert len(g["cases"]) == 3
    for case in g["cases"]:
        config = DistillConfig(
            **OFFICIAL | {"subpaths": inputs["num_ddim_timesteps"]},
            guidance=case["w_scale"],
            loss=case["loss_type"],
            huber_c=case["huber_c"],
            teacher_prediction_type=inputs["prediction_type"],
        )
        distiller = SubPathDistiller(NoiseSchedule.stable_diffusion(dtype), config)
        nets = OfficialNets(case["student"] == "embedding")
        output = distiller.step(
            x0, sample, teacher=nets.teacher, student=nets.student, target=nets.target,
            cond=cond, uncond=uncond,
        )  # fmt: skip
        assert output.loss.dtype == dtype
        assert_near(output.loss, case["loss"], rtol=CLOSE[dtype]["rtol"])
        assert_near(output.loss, case["loss_f32_verbatim"], rtol=2e-5)
        if "target" in case:
            check_intermediates(distiller, output, nets, case, CLOSE[dtype])


def check_intermediates(distiller, output, nets, case, near):
    """Every quantity on the way to the loss."""
    assert output.t.tolist() == case["start_timesteps"]
    assert output.s.tolist() == case["timesteps"]
    assert_near(output.x_t, case["noisy_model_input"], **near)
    conditional, unconditional = nets.outputs["teacher"]
    level_t = distiller.schedule(output.t)
    for out, name in ((conditional, "cond_pred_x0"), (unconditional, "uncond_pred_x0")):
        assert_near(to_prediction(out, output.x_t, level_t).x0, case[name], **near)
    assert_near(output.teacher.x0, case["pred_x0"], **near)
    assert_near(output.teacher.eps, case["pred_noise"], **near)
    assert_near(output.x_s, case["x_prev"], **near)
    assert_near(output.target, case["target"], **near)
    assert_near(output.x_gamma, case["inter_input"], **near)
    # The float32 embedding is only good to 2e-3, a quarter of which is in the student's output.
    loose = {**near, "atol": 5e-5 if near is CLOSE[F32] and nets.embedding else near["atol"]}
    assert_near(nets.outputs["student"][0], case["noise_pred"], **loose)
    # sigma/alpha, 14.6 at t = 999, multiplies it.
    tight = near if near is CLOSE[F64] else {"rtol": 2e-5, "atol": 15 * loose["atol"]}
    assert_near(output.prediction, case["model_pred"], **tight)
    squares = (output.prediction - output.target).square().flatten(1).mean(dim=1)
    assert_near(squares, case["per_sample_mse"], rtol=1e-9 if near is CLOSE[F64] else 2e-3)


def test_lcm_scheduler():
    schedule = NoiseSchedule.stable_diffusion()
    g = golden()["lcm_scheduler"]
    subpaths = g["original_inference_steps"]
    assert len(g["timesteps"]) == 11
    for steps, expected in g["timesteps"].items():
        assert consistency_timesteps(int(steps), schedule, subpaths).tolist() == expected


@both
def test_update_ema(dtype):
    g = golden()["update_ema"]
    target, source = torch.nn.Module(), torch.nn.Module()
    target.weight = torch.nn.Parameter(torch.tensor(g["target0"], dtype=dtype))
    source.weight = torch.nn.Parameter(torch.tensor(g["source"], dtype=dtype))
    assert len(g["after"]) == 3
    for expected in g["after"]:
        update_ema(target, source, g["rate"])
        assert_near(target.weight, expected, **CLOSE[dtype])
