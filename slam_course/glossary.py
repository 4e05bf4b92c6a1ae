r"""The symbols of the lessons: meaning, name in the code, and the lesson that brings each in.

    >>> from slam_course import glossary
    >>> glossary.find("gamma")[0].code
    ('slam_edu.DistillOutput.gamma', 'slam_edu.interpolate(gamma)')

``glossary.show()`` prints the table in a notebook, ``python -m slam_course.glossary`` in a terminal,
``python -m slam_course.glossary --lesson 4`` the rows of one lesson. The website's page is made from
:data:`SYMBOLS` as well, and tests/test_glossary.py holds it against the code and the lessons.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

LESSONS = range(10)


@dataclass(frozen=True, kw_only=True)
class Symbol:
    r"""One symbol.

    Args:
        symbol: in LaTeX, as the lessons write it.
        plain: the same for a terminal, in letters that every keyboard has.
        meaning: one or two phrases; formulas in LaTeX between dollar signs.
        code: full names in the library. ``slam_edu.Level.alpha`` is an attribute, a name with
            brackets such as ``slam_edu.interpolate(gamma)`` a function and its argument. Empty
            where the library has no name for it.
        lesson: the lesson that defines it.

    Raises:
        ValueError: for a lesson that does not exist.
    """

    symbol: str
    plain: str
    meaning: str
    code: tuple[str, ...]
    lesson: int

    def __post_init__(self) -> None:
        if self.lesson not in LESSONS:
            raise ValueError(f"lesson is {self.lesson!r}; allowed: 0 to {LESSONS[-1]}")


def _rows(lesson: int, *rows: tuple[str, ...]) -> tuple[Symbol, ...]:
    """Symbols of one lesson from (symbol, plain, meaning, names in the code...)."""
    return tuple(
        Symbol(symbol=symbol, plain=plain, meaning=meaning, code=code, lesson=lesson)
        for symbol, plain, meaning, *names in rows
        for code in [tuple(f"slam_edu.{name}" for name in names)]
    )


SYMBOLS: tuple[Symbol, ...] = (
    *_rows(
        0,
        (
            r"t",
            "t",
            "timestep, a label of the noise level: 0 is data, 999 nearly pure noise; later also "
            "the noisy end of a sub-path",
            "NoiseSchedule.forward(t)",
            "SubPathGrid.t",
        ),
        (r"x_0", "x_0", "a sample of the data, clean", "add_noise(x0)", "Prediction.x0"),
        (r"\epsilon", "epsilon", "a draw of standard normal noise", "add_noise(noise)"),
        (
            r"x",
            "x",
            r"a noisy sample, $x = \alpha x_0 + \sigma\epsilon$: a point or an image's latent",
            "to_prediction(x)",
            "PFODEState.x",
        ),
        (r"\alpha", "alpha", "share of the data in a noisy sample", "Level.alpha"),
        (r"\sigma", "sigma", "standard deviation of the noise in a sample", "Level.sigma"),
        (r"(\alpha, \sigma)", "(alpha, sigma)", "a level", "Level"),
    ),
    *_rows(
        1,
        (
            r"\rho",
            "rho",
            r"noise over signal, $\rho = \sigma/\alpha$: how noisy, whatever the scale",
            "Level.rho",
        ),
        (r"\mu_k", "mu_k", "mean of a mixture's component", "toy.GaussianMixture(means)"),
        (r"w_k", "w_k", "weight of a mixture's component", "toy.GaussianMixture(weights)"),
        (
            r"\mathrm{std}",
            "std",
            "standard deviation of a mixture's components",
            "toy.GaussianMixture(std)",
        ),
        (
            r"p_t",
            "p_t",
            "density of the noisy samples at timestep t",
            "toy.GaussianMixture.log_density",
        ),
        (
            r"\nabla_x \log p_t",
            "grad log p_t",
            "score: the gradient of the logarithm of the density",
            "toy.GaussianMixture.score",
        ),
        (
            r"\mathbb E[x_0 \mid x]",
            "E[x_0 | x]",
            "what a perfect denoiser answers: the mean of all data that could have led to $x$",
            "toy.GaussianMixture.denoise",
        ),
        (
            r"v",
            "v",
            r"$\alpha\epsilon - \sigma x_0$: the third thing that a network may be trained to "
            "predict",
            "to_prediction(prediction_type)",
        ),
        (
            r"\epsilon(x, t)",
            "epsilon(x, t)",
            "the mean noise in $x$, which a network learns: the slope of the PF-ODE",
            "Prediction.eps",
        ),
        (r"z", "z", r"a sample in units of its signal, $z = x/\alpha$", "chord"),
        (r"N", "N", "number of sub-paths that the schedule is cut into", "DistillConfig.subpaths"),
        (r"s", "s", "the clean end of a step or sub-path", "SubPathGrid.s", "ddim_step(level_s)"),
        (
            r"x_t",
            "x_t",
            "a sample at timestep t, the noisy end of a sub-path",
            "DistillOutput.x_t",
        ),
        (
            r"x_s",
            "x_s",
            "a sample at its clean end; in distillation the teacher's DDIM step from $x_t$",
            "DistillOutput.x_s",
        ),
        (
            r"f^*",
            "f*",
            "solution map: where the PF-ODE takes a noisy sample to",
            "toy.solution_map",
        ),
    ),
    *_rows(
        2,
        (
            r"\alpha_t",
            "alpha_t",
            r"$\alpha$ at timestep t; likewise $\sigma_t$, $\rho_t$, $z_t$, and all of them at s",
            "DistillOutput.level_t",
            "DistillOutput.level_s",
        ),
        (
            r"\hat\epsilon",
            "epsilon^",
            "the noise in a sample as the network has it",
            "Prediction.eps",
        ),
        (r"\hat x_0", "x_0^", "the data in it that belong to that noise", "Prediction.x0"),
        (r"n", "n", "number of steps of a sampler", "sample_ddim(steps)"),
        (r"h", "h", r"length of a hop in $\rho$, $h = \rho_t - \rho_s$"),
        (r"z''", "z''", r"curvature of a path: second derivative of $z$ in $\rho$"),
        (r"\lambda", "lambda", r"$-\log\rho$, in which DPM-Solver++ measures its steps"),
        (r"r", "r", r"the last hop's length in $\lambda$ over this one's"),
        (r"D", "D", "the extrapolated guess of DPM-Solver++", "dpmpp_2m_step(previous)"),
        (
            r"p",
            "p",
            r"order of a solver: half the hop divides the error by $2^p$",
            "toy.errors.measured_order",
        ),
    ),
    *_rows(
        3,
        (r"\theta", "theta", "weights of the student", "SubPathDistiller.step(student)"),
        (
            r"f_\theta",
            "f_theta",
            "consistency function of the student",
            "SubPathDistiller.predict",
            "consistency_output",
        ),
        (
            r"c_\text{skip}",
            "c_skip",
            "how much of its input the consistency function keeps",
            "boundary_scalings",
        ),
        (
            r"c_\text{out}",
            "c_out",
            "how much of the network's guess it takes",
            "boundary_scalings",
        ),
        (
            r"\sigma_d",
            "sigma_d",
            "standard deviation of the data in these scalings, 0.5",
            "boundary_scalings(sigma_data)",
        ),
        (
            r"\tau",
            "tau",
            r"the scaled timestep in them, $\tau = 10\,t$",
            "boundary_scalings(timestep_scaling)",
        ),
        (r"k", "k", "length of a sub-path in timesteps, 1000/N", "SubPathGrid.k"),
        (
            r"f_{\theta^-}",
            "f_theta^-",
            r"the target network's, with weights $\theta^-$, a slow copy of $\theta$",
            "SubPathDistiller.step(target)",
            "ema_copy",
        ),
        (
            r"y",
            "y",
            r"target, $y = f_{\theta^-}(x_s, s)$",
            "DistillOutput.target",
        ),
        (r"p", "p", "the student's prediction, held against $y$", "DistillOutput.prediction"),
        (
            r"r",
            "r",
            r"rate of the moving average, $\theta^- \leftarrow r\theta^- + (1-r)\theta$",
            "update_ema(rate)",
        ),
        (
            r"d_i",
            "d_i",
            "defect: what the consistency function's answers at the ends of hop i differ by",
        ),
    ),
    *_rows(
        4,
        (
            r"\gamma",
            "gamma",
            "position on the chord: 0 at the clean end, 1 at the noisy end, above 1 past it",
            "DistillOutput.gamma",
            "interpolate(gamma)",
        ),
        (r"a", "a", r"drift factor, $a = \alpha_t/\alpha_s < 1$"),
        (
            r"x_\gamma",
            "x_gamma",
            r"a point of the chord, $x_\gamma = \gamma x_t + (1-\gamma)\,a\,x_s$",
            "interpolate",
            "DistillOutput.x_gamma",
        ),
        (
            r"z_\gamma",
            "z_gamma",
            r"the same in units of its signal, $\gamma z_t + (1-\gamma) z_s$: a straight line",
            "chord",
        ),
        (
            r"\rho_\gamma",
            "rho_gamma",
            r"its noise over signal, $\gamma\rho_t + (1-\gamma)\rho_s$ for the linear coupling",
            "chord",
        ),
        (r"\Delta", "Delta", r"$x_t - a\,x_s$: the paper's name for the chord"),
        (r"\epsilon_t", "epsilon_t", r"the noise in $x_t$; $\epsilon_s$ is that in $x_s$"),
        (r"b", "b", r"bend of a sub-path, $b = \tfrac12 h^2 z''$", "toy.chords.bend"),
        (
            r"\sigma_\gamma",
            "sigma_gamma",
            "noise in a point of the chord; how it is computed is the coupling, linear or markov",
            "sub_level",
            "DistillConfig.coupling",
        ),
        (
            r"\delta(\gamma)",
            "delta(gamma)",
            "error of what is taught at $x_\\gamma$",
            "toy.chords.taught_errors",
        ),
        (
            r"n",
            "n",
            r"norm of a chord point's level, $\sqrt{\alpha_t^2 + \sigma_\gamma^2}$: divided by "
            "it, the point lies on the schedule",
            "NoiseSchedule.rescale",
        ),
        (
            r"e(10 - 10\gamma)",
            "e(10 - 10 gamma)",
            "the official embedding of gamma: 256 sines and cosines",
            "gamma_embedding",
            "guidance_scale_embedding",
        ),
    ),
    *_rows(
        5,
        (r"L", "L", "loss of a batch", "DistillOutput.loss"),
        (r"a_i", "a_i", "what run i of a method measures; $b_i$ is the other method's"),
        (r"L_i", "L_i", r"logarithm of their ratio, $\log(a_i/b_i)$"),
        (r"s_L", "s_L", "standard deviation of the $L_i$"),
        (r"t_{n-1}", "t_(n-1)", "quantile of Student's distribution with $n - 1$ degrees"),
    ),
    *_rows(
        6,
        (
            r"w",
            "w",
            "guidance: 0 is none",
            "DistillConfig.guidance",
            "guided_prediction(guidance)",
        ),
        (r"E", "E", "the autoencoder's encoder", "sd.LatentDiffusion.encode_images"),
        (r"D", "D", "its decoder", "sd.LatentDiffusion.decode"),
        (r"s", "s", "scaling factor between autoencoder and diffusion model"),
        (r"a_l", "a_l", "attention of a place to token l, from a query $q$ and a key $k_l$"),
        (r"d", "d", "how many numbers a query and a key have"),
        (r"\epsilon_c", "epsilon_c", "noise predicted with the prompt", "guided_prediction(cond)"),
        (
            r"\epsilon_u",
            "epsilon_u",
            "noise predicted with the empty prompt",
            "guided_prediction(uncond)",
        ),
        (r"g", "g", "diffusers' `guidance_scale`, $g = w + 1$"),
    ),
    *_rows(
        7,
        (r"W", "W", "weight of the first layer behind the timestep's embedding; $b$ is its bias"),
        (r"\tau", "tau", "the timestep's embedding"),
        (r"P", "P", "matrix through which the embedding of gamma enters, `cond_proj`"),
    ),
    *_rows(
        8,
        (r"p", "p", "probability that an image is right; $q$ is another model's"),
        (r"d", "d", "number of features of an image"),
        (r"F", "F", "Fréchet distance of two clouds of features", "digits.evaluate.Evaluator"),
        (r"C_1", "C_1", r"covariance of the first cloud's features; $\mu_1$ is their mean"),
        (r"K", "K", "kernel distance, unbiased", "digits.evaluate.Evaluator"),
    ),
    *_rows(
        9,
        (r"W", "W", "number of processes; later a weight that an adapter adds to"),
        (
            r"B",
            "B",
            "samples in a batch; later an adapter's second matrix",
            "sd.config.SDConfig.batch",
        ),
        (
            r"A",
            "A",
            "batches an update accumulates; later an adapter's first matrix",
            "sd.config.SDConfig.accumulate",
        ),
        (r"r", "r", "rank of an adapter"),
        (r"\alpha", "alpha", "scale of an adapter, in units of its rank"),
        (r"s", "s", "strength of an adapter, chosen when one samples"),
    ),
)


def find(plain: str) -> list[Symbol]:
    """The symbols with that plain name, of which some letters have several.

    Raises:
        ValueError: there is none.
    """
    found = [symbol for symbol in SYMBOLS if symbol.plain == plain]
    if not found:
        names = ", ".join(dict.fromkeys(symbol.plain for symbol in SYMBOLS))
        raise ValueError(f"there is no symbol {plain!r}; allowed: {names}")
    return found


def of_lesson(lesson: int | None = None) -> tuple[Symbol, ...]:
    """The symbols that a lesson brings in; None: all.

    Raises:
        ValueError: for a lesson that does not exist.
    """
    if lesson is None:
        return SYMBOLS
    if lesson not in LESSONS:
        raise ValueError(f"lesson is {lesson!r}; allowed: 0 to {LESSONS[-1]}, or None for all")
    return tuple(symbol for symbol in SYMBOLS if symbol.lesson == lesson)


class Table:
    """Symbols, shown as a table: rendered in a notebook, as text in a terminal."""

    def __init__(self, symbols: Sequence[Symbol]) -> None:
        self.symbols = tuple(symbols)

    def _repr_markdown_(self) -> str:
        lines = ["| symbol | meaning | in the code | lesson |", "|---|---|---|---|"]
        for symbol in self.symbols:
            code = ", ".join(f"`{short(name)}`" for name in symbol.code)
            lines.append(
                f"| ${symbol.symbol}$ | {symbol.meaning} | {code} | {symbol.lesson:02d} |"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        blocks = []
        for symbol in self.symbols:
            code = ", ".join(short(name) for name in symbol.code) or "(no name in the code)"
            text = f"{plainly(symbol.meaning)}. {code}; lesson {symbol.lesson:02d}"
            filled = textwrap.wrap(
                text, width=98, initial_indent=" " * 18, subsequent_indent=" " * 18
            )
            filled[0] = f"{symbol.plain:<18}{filled[0][18:]}"
            blocks.append("\n".join(filled))
        return "\n".join(blocks)


def plainly(text: str) -> str:
    """A meaning without LaTeX's marks, for a terminal."""
    for latex, plain in ((r"\,", " "), (r"\tfrac12", "1/2"), (r"\leftarrow", "<-")):
        text = text.replace(latex, plain)
    return text.translate(str.maketrans({"$": "", "\\": "", "{": "(", "}": ")"}))


def short(name: str) -> str:
    """A full name as one writes it after ``import slam_edu`` names: without the package."""
    return name.removeprefix("slam_edu.")


def show(lesson: int | None = None) -> Table:
    """The table of all symbols, or of those that one lesson brings in.

    Raises:
        ValueError: for a lesson that does not exist.
    """
    return Table(of_lesson(lesson))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m slam_course.glossary", description=main.__doc__
    )
    parser.add_argument("--lesson", type=int, choices=LESSONS, help="of one lesson alone")
    print(show(parser.parse_args(arguments).lesson))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
