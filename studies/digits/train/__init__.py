"""Training the digits' Stable Diffusion from scratch, part by part.

    python -m studies.digits.train vae          images to latents and back
    python -m studies.digits.train diffusion    UNet and text encoder
    python -m studies.digits.train classifier   reads digits, for the scores
    python -m studies.digits.train export       write data/digits-sd and data/digits-classifier

Each writes a run folder with its configuration, a log of one row per hundred updates, and a
checkpoint from which the same command goes on, bit for bit.
"""
