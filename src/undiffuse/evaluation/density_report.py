"""A density as text and as an HTML page: its parts, the terms over time as plotted by IDDPM, the extreme images."""

import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from undiffuse.evaluation.density import RAW, Density
from undiffuse.evaluation.page import Page, write_page
from undiffuse.evaluation.report import unlearnt
from undiffuse.names import counted
from undiffuse.plots import save_figure, strips

SHOWN = 12
HEADINGS = ("part", "bits/dim", "standard error", "what it is")
WHAT = {
    "prior": "L_T: what the noisiest state still reveals about the image",
    "diffusion": "the steps in between",
    "reconstruction": "L_0: the image from its least noisy state",
    "latent": "-log2 of the prior's density at the latent",
    "volume": "the change of volume on the way to it",
    "dequantisation": "log2(256 / 2), for the width of a bin in [-1, 1]; and log2 q within the bin",
    "bits_per_dim": "the total: an upper bound on -log2 p, per dimension (a channel of a pixel)",
}


def rows(density: Density) -> list[tuple[str, str, str, str]]:
    """The parts, under HEADINGS."""
    return [
        (name.replace("_", " "), f"{part.mean:.4f}", f"{part.error:.4f}", WHAT[name])
        for name, part in density.parts.items()
    ]


def sentence(density: Density) -> str:
    """What was measured, and what it means for the size of a file."""
    facts = density.conditions
    coded, raw = density.bytes_per_image
    if facts["bound"] == "ODE":
        how = f"probability-flow ODE, dequantisation {facts['dequantisation']}"
    elif facts["bound"] == "own":
        how = "the model's own likelihood, or bound of it"
    else:
        how = "continuous bound" if facts["steps"] is None else f"bound of {counted(facts['steps'], 'step')}"
    variance = f", {facts['variance']} variance" if facts["variance"] else ""
    note = "".join(f"; {one}" for one in unlearnt(density.name, facts["learnt_this_data"]))
    return (
        f"{density.name}: {density.n:,} images of {facts['data']} ({facts['split']}), {facts['dimensions']} dimensions "
        f"of 8 bits; {how}{variance}, {counted(facts['draws'], 'draw')} per image{note}\n"
        f"An ideal coder would need {coded:,.0f} net bytes per image, instead of {raw:,.0f} uncompressed (bits back; "
        "no coder is run here)."
    )


def write_report(density: Density, path: Path) -> None:
    """Writes the page."""
    with tempfile.TemporaryDirectory() as folder:
        terms, images = Path(folder) / "terms.png", Path(folder) / "images.png"
        if density.curve:
            draw_terms(density, terms)
        order = np.argsort(density.per_image)
        count = min(SHOWN, len(order))
        chosen = {"fewest bits": order[:count], "most bits": order[-count:][::-1]}
        strips(
            [(name, density.images[index]) for name, index in chosen.items()],
            [""] * count,
            "Bits per dimension, least "
            + ", ".join(f"{x:.2f}" for x in density.per_image[chosen["fewest bits"][:3]])
            + " ..., most "
            + ", ".join(f"{x:.2f}" for x in density.per_image[chosen["most bits"][:3]])
            + " ...",
            images,
        )
        facts = {key: value for key, value in density.to_json().items() if key != "per_image"}  # too many to read
        page = Page(
            title=f"{density.name}: density",
            heading=f"Density of {density.name} on {density.conditions['data']}",
            summary=sentence(density).splitlines(),
            headings=HEADINGS,
            rows=rows(density),
            notes=[],
            figures=[*([(terms, caption(density))] if density.curve else []), (images, "")],
            conditions=facts,
        )
        write_page(page, path)


def caption(density: Density) -> str:
    """The caption for the figure of the terms."""
    if density.conditions["bound"] == "continuous":
        return (
            "The integrand over the log-SNR, with two standard errors: the area under the curve is the diffusion term."
        )
    return (
        "The terms L_t of the bound, with two standard errors, both axes logarithmic (Nichol & Dhariwal 2021, "
        "figure 2); L_0 is the first."
    )


def draw_terms(density: Density, path: Path) -> None:
    """The terms over time as PNG, with two standard errors."""
    assert density.curve is not None
    at, bits, error = density.curve
    figure = Figure(figsize=(5.4, 3.4))
    axes = figure.subplots()
    if density.conditions["bound"] == "continuous":
        axes.set_xlabel("log-SNR (little noise at the left)")
        axes.set_ylabel("bits/dim per unit of log-SNR")
        axes.invert_xaxis()
    else:
        at = np.concatenate([[0.5], at])  # L_0, at the edge of a logarithmic axis
        bits = np.concatenate([[density.parts["reconstruction"].mean], bits])
        error = np.concatenate([[density.parts["reconstruction"].error], error])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("step t")
        axes.set_ylabel("L_t, bits/dim")
    low = np.maximum(bits - 2 * error, 1e-9 if axes.get_yscale() == "log" else -np.inf)
    axes.fill_between(at, low, bits + 2 * error, alpha=0.25)
    axes.plot(at, bits, marker=".", linewidth=1.2)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)  # after its top is known
    axes.set_title(f"{density.name}: {density.parts['bits_per_dim'].mean:.3f} of {RAW:g} bits/dim", fontsize=10)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
