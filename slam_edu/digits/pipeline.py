"""The shipped models: a Stable Diffusion of coloured digits, and the eyes that judge it.

``data/digits-sd`` is an ordinary diffusers folder; ``StableDiffusionPipeline.from_pretrained`` on
it is all that is needed. :func:`load_pipeline` finds it, in a checkout and in an installed wheel,
and checks each file against the checksum it was shipped with. ``data/digits-student`` holds what
its distilled student has of its own; :func:`load_student` puts it together with the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from slam_edu.digits.classifier import DigitClassifier
from slam_edu.io import atomic_path, data_path

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PIPELINE, STUDENT, CLASSIFIER = "digits-sd", "digits-student", "digits-classifier"
CHECKSUMS = "checksums.json"


def load_pipeline(folder: str | os.PathLike[str] | None = None) -> StableDiffusionPipeline:
    """The Stable Diffusion of the digits, on the CPU in float32, without a network.

    Args:
        folder: of a pipeline with the same checksum file; default the shipped one.

    Returns:
        diffusers' own pipeline, without its progress bar.

    Raises:
        FileNotFoundError: if the folder or a file of it is missing.
        ValueError: for a file that is not the one that was shipped.
        ModuleNotFoundError: without diffusers and transformers.
    """
    folder = Path(folder) if folder is not None else data_path(PIPELINE)
    check_files(folder)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import transformers  # noqa: F401 - diffusers would miss it later, and say less
        from diffusers import StableDiffusionPipeline
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the digits' pipeline needs {error.name}; install it with `pip install slam_edu[sd]`",
            name=error.name,
        ) from error
    with quiet():
        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_student(
    folder: str | os.PathLike[str] | None = None, teacher: StableDiffusionPipeline | None = None
) -> StableDiffusionPipeline:
    """The distilled digits model: four steps at ``guidance_scale=1``, on the CPU in float32.

    Its folder holds a UNet and a scheduler alone; autoencoder, text encoder and tokenizer are the
    teacher's, the same objects where a teacher is passed in.

    Args:
        folder: that ``python -m slam_edu.digits.students --ship`` wrote; default the shipped one.
        teacher: whose other parts are used; default the shipped one.

    Returns:
        diffusers' own pipeline with ``LCMScheduler``, without its progress bar.

    Raises:
        FileNotFoundError: if the folder or a file of it is missing.
        ValueError: for a file that is not the one that was shipped.
        ModuleNotFoundError: without diffusers and transformers.
    """
    folder = Path(folder) if folder is not None else data_path(STUDENT)
    check_files(folder)
    teacher = load_pipeline() if teacher is None else teacher
    from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with quiet():
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
        pipeline = StableDiffusionPipeline(
            vae=teacher.vae,
            text_encoder=teacher.text_encoder,
            tokenizer=teacher.tokenizer,
            unet=unet.eval(),
            scheduler=LCMScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers' and transformers' loading bars off standard error."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was_shown in zip(libraries, shown, strict=True):
            if was_shown:
                library.enable_progress_bar()


def load_classifier(folder: str | os.PathLike[str] | None = None) -> DigitClassifier:
    """The digit classifier, in evaluation mode.

    Args:
        folder: with ``classifier.safetensors``; default the shipped one.

    Raises:
        FileNotFoundError: if the folder or a file of it is missing.
        ValueError: for a file that is not the one that was shipped.
    """
    from safetensors.torch import load_file

    folder = Path(folder) if folder is not None else data_path(CLASSIFIER)
    check_files(folder)
    classifier = DigitClassifier()
    weights = load_file(folder / "classifier.safetensors")
    classifier.load_state_dict(weights)  # copies half precision into float32
    return classifier.eval().requires_grad_(False)


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of the folder but the list itself and the README."""
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (CHECKSUMS, "README.md")
    }
    with atomic_path(folder / CHECKSUMS) as temporary:
        temporary.write_text(json.dumps(files, indent=2) + "\n", "utf-8")


def check_files(folder: Path) -> None:
    """Compare the folder with its list of checksums.

    Args:
        folder: with ``checksums.json``.

    Raises:
        FileNotFoundError: if the folder, the list or a file of it is missing.
        ValueError: for a list that cannot be read, or a file that is another one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r}; allowed: a folder that "
            f"`python -m slam_edu.digits.train export` wrote"
        )
    mend = (
        f"get the files back with `git checkout -- data/{folder.name}` in a checkout, or with "
        f"`pip install --force-reinstall --no-deps slam_edu`"
    )
    path = folder / CHECKSUMS
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; {mend}")
    try:
        files = json.loads(path.read_text("utf-8"))
        wanted = {str(name): str(digest) for name, digest in files.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); {mend}") from error
    for name, digest in wanted.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{str(file)!r} is missing; {mend}")
        if _sha256(file) != digest:
            size = file.stat().st_size
            raise ValueError(
                f"{str(file)!r}, {size:,} bytes long, is not the file that was shipped: its "
                f"checksum differs; {mend}"
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:  # gigabytes, of a large model
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
