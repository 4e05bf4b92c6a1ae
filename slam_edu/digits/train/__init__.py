"""Training the digits' Stable Diffusion from scratch, part by part.

    python -m slam_edu.digits.train vae          images to latents and back
    python -m slam_edu.digits.train diffusion    UNet and text encoder
    python -m slam_edu.digits.train classifier   the evaluator's eyes
    python -m slam_edu.digits.train export       write data/digits-sd and data/digits-eyes

Each writes a run folder with its configuration, a log of one row per hundred updates, and a
checkpoint from which the same command goes on, bit for bit.
"""
