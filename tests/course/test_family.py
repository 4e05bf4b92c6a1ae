"""The family of few-step methods, held to closed forms.

The data are one Gaussian, N(mu, s^2 I): in z and rho every trajectory is z - mu in proportion to
r = sqrt(s^2 + rho^2), so that mean slopes, ends, and the exact student of every method are
formulas. What a method computes of other networks is written out.
"""

import dataclasses

import pytest
import torch

from slam_course.family import METHODS, Counted, Trio, training
from slam_course.family.guidance import Guided
from slam_edu import OFFICIAL, DistillConfig, Level, NoiseSchedule, SubPathDistiller, SubPathSample
from slam_edu.consistency import boundary_scalings
from slam_edu.prediction import to_output, to_prediction
from slam_edu.solver import ddim_step
from slam_edu.toy import solution_map
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.networks import LevelMLP
from tests.helpers import TinyNet, assert_near, column, f64, noise

# torch loads its rules of forward-mode differentiation through TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
names = pytest.mark.parametrize("name", METHODS)

SD = NoiseSchedule.stable_diffusion(torch.float64)
T, MU, WIDTH = 1000, f64([[0.5, -0.3]]), 0.4
ONE = GaussianMixture(MU, WIDTH)
CD, LEVEL = "consistency distillation", "SLAM, level-conditioned"
MIDDLE = "SLAM, middle slope"
CTM, PROGRESSIVE = "consistency trajectory (CTM / TCD)", "progressive distillation"
PCM, PERFLOW = "phased consistency (PCM)", "piecewise rectified flow (PeRFlow)"
SHORTCUT, SCM = "shortcut models", "continuous-time consistency (sCM)"
CONSISTENCY = [name for name in METHODS if name.startswith((CD, "SLAM"))]


def radius(rho):
    return (WIDTH**2 + rho**2).sqrt()


def end_of(x, t, rho_s):
    """z where the trajectory through x at t has come to rho_s."""
    level = SD.at(t)
    return MU + column(radius(rho_s) / radius(level.rho), x) * (x / column(level.alpha, x) - MU)


def at_zero(x, t):
    return SD.alpha[0] * end_of(x, t, SD.rho[0])


def v_to(x, t, rho_s, factor=None):
    """v of the mean slope from x at t to rho_s, the velocity where that is t's."""
    level = SD.at(t)
    r, r_s = radius(level.rho), radius(rho_s)
    factor = (level.rho + rho_s) / (r * (r + r_s)) if factor is None else factor
    eps = column(factor, x) * (x / column(level.alpha, x) - MU)
    return to_output(to_prediction(eps, x, level), level, "v_prediction")


def diffusion(x, t, cond=None, gamma=None):
    """The teacher's v, which is a student's before its first update."""
    return v_to(x, t, SD.at(t).rho)


def exact(method, steps=8):
    """The student that answers exactly what the method asks for."""
    hop = (T - 1) / steps

    def network(x, t, cond=None, gamma=None):
        t = t.double().contiguous()
        if method.two_times:
            length = (1 - gamma) * T
            if method.name == SHORTCUT:  # half of the shortest jump stands for none
                length = length * (length > (T - 1) / 127)
            return v_to(x, t, SD.at(t - length).rho)
        if method.name in CONSISTENCY:
            (skip, out), level = boundary_scalings(t, dtype=x.dtype), SD.at(t)
            x0 = (at_zero(x, t) - column(skip, x) * x) / column(out, x)
            v = (column(level.alpha, x) * x - x0) / column(level.sigma, x)
            return torch.where((t == 0)[:, None], 0, v)  # there f is x whatever the network says
        if method.name == PERFLOW:  # the points of a chord are mu + (z - mu) times a line in rho
            noisy, clean = method.grid.ends(torch.searchsorted(method.grid.t.double(), t))
            high, low = SD.at(noisy).rho, SD.at(clean).rho
            rise = (radius(high) - radius(low)) / (high - low)
            return v_to(x, t, low, rise / (radius(low) + rise * (SD.at(t).rho - low)))
        if method.name == SCM:
            return v_to(x, t, torch.zeros_like(t))
        low = method.edge(t.long()) if method.name == PCM else ((t / hop).ceil() - 1) * hop
        return v_to(x, t, SD.at(low.clamp(min=0)).rho)

    return network


def networks(student, target=None, teacher=None, used=0.0):
    teacher, target = (teacher or ONE.network(SD), "teacher"), (target or student, "target")
    teacher, target = (Counted(*of, frozen=True) for of in (teacher, target))
    return Trio(teacher, Counted(student, "student"), target, used)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(method, size=64):
    """Clean samples, and a draw in the schedule's precision."""
    x0 = ONE.sample(size, generator())
    drawn = method.draw(x0, generator(1))
    if isinstance(drawn, tuple):
        drawn = tuple(v.double() if v.is_floating_point() else v for v in drawn)
    return x0, drawn


@names
def test_exact_students_solve(name):
    method = METHODS[name](SD)
    # A trajectory is on PeRFlow's chords at the windows' edges alone; a shortcut's shortest jump
    # has the teacher's slope; sCM ends without noise.
    for t in {PERFLOW: (999, 499), SHORTCUT: (999,)}.get(name, training.TIMES):
        t, x = torch.full((20,), t), noise(20, 2, seed=t)
        found = method.solve(Counted(exact(method), "student"), x, t)
        expected = end_of(x, t, f64(0)) if name == SCM else at_zero(x, t)
        assert_near(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, n) for name in (CTM, PROGRESSIVE, SHORTCUT, "MeanFlow") for n in (1, 2, 4, 8)]
    + [(PCM, 4), (PERFLOW, 4), (PERFLOW, 8)],
)
def test_exact_students_sample_deterministically(name, steps):
    method, x = METHODS[name](SD), noise(20, 2)
    student = Counted(exact(method, steps), "student")
    found = method.sample(student, x, steps, generator())
    assert student.calls.forward == 20 * steps
    assert_near(found, at_zero(x, torch.full((20,), T - 1)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [(name, {"subpaths": N}, n) for name in (CD, LEVEL, SCM) for N, n in ((50, 4), (5, 8))]
    + [(PCM, {}, 8), (PCM, {"pieces": 1}, 2), (PCM, {"subpaths": 5, "pieces": 2}, 4)],
)
def test_exact_students_sample_the_data_through_fresh_noise(name, options, steps):
    """The noise is of the right amount: mean and spread stay those of the data."""
    method, count = METHODS[name](SD, **options), 20_000
    student = Counted(exact(method), "student")
    x = ONE.sample_at(SD(T - 1), count, generator(1))
    found = method.sample(student, x, steps, generator(2))
    assert student.calls.forward == count * steps
    assert_near(found.mean(0, keepdim=True), MU, rtol=0, atol=5 * WIDTH / count**0.5)
    spread = radius(SD.rho[0])  # timestep 0 has a little noise
    assert_near(found.std(0) / spread, f64([1.0, 1.0]), rtol=0, atol=5 / (2 * count) ** 0.5)


@names
def test_exact_students_have_no_loss(name):
    """It is 0 where targets are exact, and small where the teacher takes fine hops."""
    method = METHODS[name](SD, subpaths=250)
    x0, batch = batch_of(method)
    used = 0.2 if name == PROGRESSIVE else 0.99  # the stage of 16 steps, after one of 32
    method.done = [Counted(exact(method, 32), "first stage", frozen=True)]
    if name == "SLAM (paper)":  # its chord is on a trajectory at gamma = 1 alone
        batch = dataclasses.replace(batch, gamma=torch.ones_like(batch.gamma))
    fine = name in (*CONSISTENCY, PCM, PERFLOW, CTM, SHORTCUT)
    before = method.loss(x0, batch, networks(diffusion, used=used))
    loss = method.loss(x0, batch, networks(exact(method, 16), used=used))
    assert loss < (1e-2 * before if fine else 1e-15)


def test_what_is_consistency_distillation():
    """SLAM at gamma = 1; with jumps to 0, CTM to s = 0 and PCM with one phase."""
    student, target = TinyNet(1), TinyNet(2)
    x0, index, eps = ONE.sample(64, generator()), torch.arange(64) % 50, noise(64, 2, seed=3)
    t, s = SD.subpaths(50).ends(index)
    x_t = SD.at(t).mix(x0, eps)
    x_s = ddim_step(ONE.predict(x_t, SD.at(t)), SD.at(s))
    ones, drawn = torch.ones_like(x0[:, 0]), METHODS[LEVEL](SD).draw(x0, generator())
    drawn = dataclasses.replace(drawn, index=index, gamma=ones, noise=eps)

    def predict(network, x, t, gamma=None):
        return to_prediction(network(x, t.double(), None, gamma), x, SD.at(t), "v_prediction")

    def function(network, x, t):
        skip, out = boundary_scalings(t, dtype=x.dtype)
        return column(skip, x) * x + column(out, x) * predict(network, x, t).x0

    def to_zero(network, x, t):
        p = predict(network, x, t, 1 - t.double() / T)
        return SD(0).mix(p.x0, p.eps)

    def of_a_phase(network, x, t):
        p = predict(network, x, t)
        return torch.where((t == 0)[:, None], x, SD(0).mix(p.x0, p.eps))

    for method, batch, answer in (
        (METHODS[CD](SD), drawn, function),
        (METHODS[LEVEL](SD), drawn, function),
        (METHODS[CTM](SD), (index, 0 * ones, eps), to_zero),
        (METHODS[PCM](SD, pieces=1), (index, eps), of_a_phase),
    ):
        expected = (answer(student, x_t, t) - answer(target, x_s, s)).square().mean()
        found = method.loss(x0, batch, networks(student, target))
        assert_near(found, expected, rtol=1e-12)


SLAM = {"SLAM (paper)": OFFICIAL, "SLAM, middle slope, gamma uniform": {"gammas": "uniform"},
        "SLAM, middle slope": {}}  # fmt: skip


@pytest.mark.parametrize("name", SLAM)
def test_slam_is_the_librarys(name):
    options = SLAM[name] | {"subpaths": 50, "loss": "huber"}
    config = DistillConfig(student_prediction_type="v_prediction", **options)
    library, method = SubPathDistiller(SD, config), METHODS[name](SD, loss="huber")
    (x0, drawn), nets = batch_of(library), networks(TinyNet(1), TinyNet(2))
    roles = {role: getattr(nets, role) for role in ("teacher", "student", "target")}
    expected = library.step(x0, drawn, **roles).loss
    assert torch.equal(method.loss(*batch_of(method), nets), expected)


def hops(method, used=0.0):
    """What a batch asks of teacher and target: their first calls."""
    teacher, target = TinyNet(1), TinyNet(2)
    method.loss(*batch_of(method, 1000), networks(TinyNet(3), target, teacher, used))
    return teacher.calls[0][1], target.calls[0][1]


@pytest.mark.parametrize(("name", "order"), [(CD, 2), (f"{CD}, Heun teacher", 3)])
def test_order_of_the_teachers_hop(name, order):
    """The target is given the end of one hop: its error, in powers of the hop's length."""
    errors, lengths, net = [], [], TinyNet(1)
    for N in (100, 200):
        method = METHODS[name](SD, subpaths=N)
        x0, drawn = batch_of(method)
        drawn = dataclasses.replace(drawn, index=torch.full((64,), N // 2 - 1))
        method.loss(x0, drawn, networks(TinyNet(2), net))
        (x_s, s, *_), t = net.calls[-1], torch.full((64,), T // 2 - 1)
        end = SD.at(s).alpha[0] * end_of(SD.at(t).mix(x0, drawn.noise), t, SD.at(s).rho)
        errors.append((x_s - end).norm())
        lengths.append((SD.at(t).rho - SD.at(s).rho)[0])
    found = (errors[0] / errors[1]).log() / (lengths[0] / lengths[1]).log()
    assert found.item() == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("of", "N", "stages"),
    [(CD, 4, [4]), (CD, 20, [5, 10, 20]), (CD, 50, [5, 10, 20, 50]), (MIDDLE, 10, [2, 4, 5, 10])],
)
def test_the_curriculums_hops_grow_shorter(of, N, stages):
    for i, n in enumerate(stages):
        for used in (i / len(stages) + 1e-9, (i + 1) / len(stages) - 1e-9):
            asked, s = hops(METHODS[f"{of}, hop curriculum"](SD, subpaths=N), used)
            grid = SD.subpaths(n)
            assert set(s.tolist()) == set(grid.s.tolist())
            rho_s, middle = SD.at(s).rho, SD.at(asked).rho
            rho_t = middle if of == CD else 2 * middle - rho_s
            expected = SD.at(grid.t[torch.searchsorted(grid.s, s)]).rho
            assert_near(rho_t, expected, rtol=1e-9)


def defect(name, N):
    """How far the far ends of the middle sub-path of N are from the trajectories of the near."""
    method = METHODS[name](SD, subpaths=N)
    x0, drawn = batch_of(method)
    drawn = dataclasses.replace(drawn, index=torch.full((64,), N // 2))
    path = method.distiller.sub_path(x0, drawn, teacher=ONE.network(SD))
    end = path.level_s.alpha[0] * end_of(path.x_t, path.t, path.level_s.rho)
    return (path.x_s - end).norm(), (path.level_t.rho - path.level_s.rho)[0]


@pytest.mark.parametrize("name", [MIDDLE, f"{MIDDLE}, parabola of two calls"])
def test_order_of_both_ends(name):
    (long, h), (short, half) = defect(name, 100), defect(name, 200)
    assert ((long / short).log() / (h / half).log()).item() == pytest.approx(3, abs=0.1)


def test_a_parabola_is_closer_than_a_chord():
    assert defect(f"{MIDDLE}, parabola of two calls", 10)[0] < 0.5 * defect(MIDDLE, 10)[0]


def test_a_grid_even_in_log_rho():
    distiller = METHODS[f"{MIDDLE}, even in log rho"](SD, subpaths=10).distiller
    drawn = SubPathSample(index=torch.arange(10), gamma=noise(10), noise=noise(10, 2))
    t, s, _ = distiller.ends(drawn)
    assert_near(s[1:], t[:-1], atol=1e-9)
    assert (s[0].item(), t[-1].item()) == (0, pytest.approx(999))
    lengths = SD.at(t).rho.log().diff()
    assert_near(lengths, lengths.mean().expand(9), rtol=1e-3)


@pytest.mark.parametrize("w", [0, 2.5])
def test_guidance_of_a_mixture_is_that_of_its_networks(w):
    whole = GaussianMixture(f64([[-1, 0.2], [0.7, 0.1], [1.2, -0.4]]), f64([0.3, 0.4, 0.5]))
    own = GaussianMixture(whole.means[1:], whole.std[1:])
    guided, x, level = Guided(whole, w), noise(30, 2), SD(400)
    e_c, e_u = (each.predict(x, level).eps for each in (own, whole))
    found = guided.predict(x, level)
    assert_near(found.eps, e_c + w * (e_c - e_u), rtol=1e-9, atol=1e-12)
    assert_near(level.mix(found.x0, found.eps), x, rtol=1e-9, atol=1e-12)
    step = 1e-3  # dz/drho = eps along the solution map
    near = Level.from_rho(level.rho - step)
    end = solution_map(guided, x, level, near, tol=1e-10).x / near.alpha
    assert_near(end, x / level.alpha - step * found.eps, atol=1e-5)


def test_random_hops_have_all_lengths():
    t, s = hops(METHODS[f"{CD}, random hop"](SD, subpaths=100))
    assert set((t - s).tolist()) == set(range(1, 11))
    assert set(s.tolist()) == set(SD.subpaths(100).s.tolist())


@pytest.mark.parametrize(("N", "pieces"), [(10, 4), (50, 1), (50, 4), (50, 8)])
def test_phases_are_never_left(N, pieces):
    method = METHODS[PCM](SD, subpaths=N, pieces=pieces)
    t, s = hops(method)
    edges = method.edge(t)
    assert bool((s >= edges).all())
    assert len(edges.unique()) == pieces
    assert not ((method.edges > edges[:, None]) & (method.edges < t[:, None])).any()


def test_a_shortcut_of_no_length_is_the_velocity():
    method, student = METHODS[SHORTCUT](SD), TinyNet(1)
    x0, (length, place, eps) = batch_of(method)
    assert (length > 0).double().mean() == 0.25
    t = place * (T - 1)
    x = SD.at(t).mix(x0, eps)
    label = torch.full_like(t, 1 - (T - 1) / 128 / T)  # of half of the shortest jump
    expected = (student(x, t, None, label) - diffusion(x, t)).square().mean()
    found = method.loss(x0, (0 * t, place, eps), networks(student, TinyNet(2)))
    assert_near(found, expected, rtol=1e-9)


def test_a_shortcut_is_two_of_half_its_length():
    method, target = METHODS[SHORTCUT](SD), TinyNet(2)
    x0, batch = batch_of(method)
    method.loss(x0, batch, networks(TinyNet(1), target))
    (_, t, _, gamma), (_, middle, _, other) = target.calls
    half = batch[0][batch[0] > 0] / 2
    for found, expected in ((t - middle, half), ((1 - gamma) * T, half), ((1 - other) * T, half)):
        assert_near(found, expected, atol=1e-9)


def test_the_first_stage_is_two_ddim_steps_of_the_teacher():
    method, student = METHODS[PROGRESSIVE](SD), TinyNet(1)
    x0, (place, eps) = batch_of(method)
    t = ((32 * place).floor() + 1) * (T - 1) / 32
    level, middle, low = (SD.at((t - i * (T - 1) / 64).clamp(min=0)) for i in range(3))
    x = level.mix(x0, eps)
    half = ddim_step(ONE.predict(x, level), middle)
    end = ddim_step(ONE.predict(half, middle), low)
    ratio = low.sigma / level.sigma  # Salimans and Ho 2022, algorithm 2
    clean = (end - column(ratio, x) * x) / column(low.alpha - ratio * level.alpha, x)
    v = (column(level.alpha, x) * x - clean) / column(level.sigma, x)
    found = method.loss(x0, (place, eps), networks(student))
    assert_near(found, (student(x, t) - v).square().mean(), rtol=1e-8)


def test_the_average_of_every_stage_is_kept():
    method, average = METHODS[PROGRESSIVE](SD), TinyNet(2)
    nets, x, at_end = networks(TinyNet(1), average), noise(5, 2), {}
    for i, steps in enumerate(method.stages):
        nets.used = (i + 0.5) / 6
        method.loss(*batch_of(method), nets)
        average.weight.data.add_(0.1)
        at_end[steps] = average(x, x[:, 0])
    for steps, expected in at_end.items():
        assert torch.equal(method.student_of(nets.target, steps)(x, x[:, 0]), expected)


def test_straight_paths_are_rectified_already():
    """Data that are almost a point: one hop follows the straight trajectories exactly."""
    point, method = GaussianMixture(MU, 1e-7), METHODS[PERFLOW](SD, subpaths=2, pieces=2)
    v, eps = point.network(SD, "v_prediction"), point.network(SD)
    assert method.loss(*batch_of(method), networks(v, teacher=eps)) < 1e-15
    assert method.loss(*batch_of(method), networks(TinyNet(1), teacher=eps)) > 1e-2


def smooth_network(gamma=None):
    """A network that can be differentiated in all that it is given."""
    network = LevelMLP(16, 2, gamma=gamma, generator=generator()).double()
    for i, p in enumerate(network.parameters()):
        p.data = 0.3 * noise(*p.shape, seed=i)
    return network


def test_meanflows_identity_by_differences():
    method, student, h = METHODS["MeanFlow"](SD), smooth_network("smooth"), 1e-6
    x0, (t, s, eps) = batch_of(method)
    assert (t > s).double().mean() == 0.25
    tau, r = (SD.at(u).rho / (1 + SD.at(u).rho) for u in (t, s))
    x = column(1 - tau, x0) * x0 + column(tau, x0) * eps

    def u_of(x, tau, answer):
        level = Level.from_rho(tau / (1 - tau))
        p = answer(column(level.alpha + level.sigma, x) * x, level)
        return p.eps - p.x0

    def mine(x, level):
        t = SD.timestep(level)
        return to_prediction(student(x, t, None, 1 - (t - s) / T), x, level, "v_prediction")

    v = u_of(x, tau, ONE.predict)
    slope = (u_of(x + h * v, tau + h, mine) - u_of(x - h * v, tau - h, mine)) / (2 * h)
    error = u_of(x, tau, mine) - (v - column(tau - r, x) * slope)
    loss = method.loss(x0, (t, s, eps), networks(student))
    square = error.square().sum(dim=1)
    assert_near(loss, (square / (square.detach() + 1e-3)).mean(), rtol=1e-5)


@pytest.mark.parametrize("used", [0.0, 1.0])
def test_scms_tangent_by_differences(used):
    """Its second part is warmed up from nothing."""
    method, student, h = METHODS[SCM](SD), smooth_network(), 1e-6
    x0, (rho, eps) = batch_of(method)
    rho = rho.clamp(0.05, 14)  # so that differences stay within the schedule
    level, theta = Level.from_rho(rho), rho.atan()
    x, (cos, sin) = level.mix(x0, eps), (column(v, x0) for v in (level.alpha, level.sigma))

    def raw(x, theta):
        return student(x, SD.timestep(Level.from_rho(theta.tan())))

    def f(x, theta):
        return column(theta.cos(), x) * x - column(theta.sin(), x) * raw(x, theta)

    p = ONE.predict(x, level)
    v = cos * p.eps - sin * p.x0
    tangent = (f(x + h * v, theta + h) - f(x - h * v, theta - h)) / (2 * h)
    g = (cos * tangent if used else cos**2 * (v - raw(x, theta))).detach()
    g = g / (g.norm(dim=1, keepdim=True) + 0.1)
    loss = method.loss(x0, (rho, eps), networks(student, used=used))
    assert_near(loss, g.square().mean(), rtol=1e-4)
    pull, weight = -2 * (g * raw(x, theta)).mean(), student.output.weight
    found, expected = (torch.autograd.grad(value, weight)[0] for value in (loss, pull))
    assert_near(found, expected, rtol=1e-4, atol=1e-6)
