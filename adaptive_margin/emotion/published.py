"""Tables 1 to 4 of Kim & Song 2021, without the numbers of parameters: quoted, not measured here.

The figures were measured on the data set named by each table, with the backbone named by each row; figures from other
data cannot be compared with them. Several rows of Tables 1 and 4 are impossible on the usual validation labels of
AffectNet (:func:`impossible`): their RMSE is lower than their PCC allows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..metrics import feasible

SOURCE = "Kim & Song 2021"
AFFECTNET_SD = {"valence": 0.466, "arousal": 0.380}
"""Of the 3,999 validation labels of AffectNet's eight classes."""

Pair = tuple[float, float]


@dataclass(frozen=True)
class Published:
    """One row of a published table; each figure is (valence, arousal), None if the paper prints nothing.

    Method and backbone are the paper's names, critic and margin ours, if the row is an arm of the ablation.
    """

    method: str
    backbone: str
    rmse: Pair | None = None
    sagr: Pair | None = None
    pcc: Pair | None = None
    ccc: Pair | None = None
    critic: str | None = None
    margin: str | None = None


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper, with the data set on which it was measured, and rows in the paper's order."""

    name: str
    dataset: str
    rows: tuple[Published, ...]


_R, _A = "ResNet18", "AlexNet (tuned)"

TABLE_1 = PublishedTable(
    "Table 1",
    "AffectNet",
    (
        Published("Mollahosseini et al. 2017", "AlexNet", (0.37, 0.41), None, (0.66, 0.54), (0.60, 0.34)),
        Published("Jang et al. 2019", "SSD, VGG16", (0.44, 0.39), None, (0.58, 0.50), (0.57, 0.47)),
        Published("Kollias et al. 2018", "VGG16", (0.37, 0.39), None, (0.66, 0.55), (0.62, 0.54)),
        Published("Barros et al. 2019", "AlexNet", ccc=(0.67, 0.38)),
        Published("Kossaifi et al. 2020", _R, (0.35, 0.32), None, (0.71, 0.63), (0.71, 0.63)),
        Published("Hasani et al. 2020", "ResNeXt50", (0.2668, 0.2482), None, (0.78, 0.86), (0.74, 0.85)),
        Published("CAF", _R, (0.2186, 0.1873), None, (0.86, 0.85), (0.83, 0.84), "caf", "adaptive"),
        Published("CAF", _A, (0.2216, 0.1916), None, (0.81, 0.86), (0.80, 0.85), "caf", "adaptive"),
    ),
)
TABLE_2 = PublishedTable(
    "Table 2",
    "AFEW-VA",
    (
        Published("Kossaifi et al. 2017", "", (0.27, 0.23), None, (0.41, 0.45)),
        Published("Mitenkova et al. 2019", "", (0.40, 0.41), None, (0.33, 0.42), (0.33, 0.40)),
        Published("Kossaifi et al. 2020", "static", (0.24, 0.24), (0.64, 0.77), (0.55, 0.57), (0.55, 0.52)),
        Published("CAF", _R, (0.17, 0.18), (0.68, 0.87), (0.67, 0.60), (0.59, 0.54), "caf", "adaptive"),
        Published("CAF", _A, (0.20, 0.20), (0.66, 0.83), (0.67, 0.63), (0.58, 0.57), "caf", "adaptive"),
        Published("ResNet18-3D", "temporal", (0.26, 0.22), (0.56, 0.77), (0.19, 0.33), (0.17, 0.29)),
        Published("ResNet18-(2+1)D", "temporal", (0.31, 0.29), (0.50, 0.73), (0.17, 0.33), (0.16, 0.20)),
        Published("Kollias et al. 2019", "temporal", None, None, (0.51, 0.58), (0.52, 0.56)),
        Published("Kossaifi et al. 2020, scratch", "temporal", (0.28, 0.19), (0.53, 0.75), (0.12, 0.23), (0.11, 0.15)),
        Published("Kossaifi et al. 2020, trans.", "temporal", (0.20, 0.21), (0.67, 0.79), (0.64, 0.62), (0.57, 0.56)),
    ),
)
TABLE_3 = PublishedTable(
    "Table 3",
    "Aff-Wild",
    (
        Published("Hasani & Mahoor 2017", "", (0.27, 0.36), (0.57, 0.74), (0.44, 0.26), (0.36, 0.19)),
        Published("Hasani et al. 2020", "", (0.26, 0.31), (0.77, 0.75), (0.42, 0.40), (0.37, 0.31)),
        Published("Deng et al. 2019, on the test set", "ResNet50", ccc=(0.58, 0.52)),
        Published("CAF", _R, (0.22, 0.20), (0.70, 0.76), (0.57, 0.57), (0.55, 0.56), "caf", "adaptive"),
        Published("CAF", _A, (0.24, 0.21), (0.68, 0.78), (0.55, 0.57), (0.54, 0.56), "caf", "adaptive"),
    ),
)
TABLE_4 = PublishedTable(
    "Table 4",
    "AffectNet",
    (
        Published("BReG-NeXt", "ResNeXt50", (0.2668, 0.2482), (0.77, 0.82), None, (0.74, 0.85)),
        Published("no critic", _R, (0.3687, 0.3584), (0.74, 0.76), None, (0.64, 0.55), "none"),
        Published("FisherGAN", _R, (0.2221, 0.1994), (0.78, 0.82), None, (0.81, 0.82), "fisher"),
        Published("SphereGAN", _R, (0.2467, 0.2152), (0.77, 0.78), None, (0.77, 0.80), "sphere"),
        Published("GramNet", _R, (0.2251, 0.1985), (0.80, 0.82), None, (0.78, 0.82), "gramnet"),
        Published("no critic", _A, (0.3712, 0.3747), (0.68, 0.70), None, (0.62, 0.38), "none"),
        Published("FisherGAN", _A, (0.2437, 0.2014), (0.75, 0.80), None, (0.75, 0.78), "fisher"),
        Published("SphereGAN", _A, (0.2687, 0.2212), (0.72, 0.78), None, (0.72, 0.79), "sphere"),
        Published("GramNet", _A, (0.2360, 0.2046), (0.78, 0.82), None, (0.76, 0.80), "gramnet"),
        Published("CAF with Δ", _R, (0.2186, 0.1873), (0.80, 0.84), None, (0.83, 0.84), "caf", "adaptive"),
        Published("CAF with Δ", _A, (0.2216, 0.1916), (0.79, 0.84), None, (0.80, 0.85), "caf", "adaptive"),
        Published("CAF with constant κ", _R, (0.2289, 0.2082), (0.78, 0.82), None, (0.76, 0.80), "caf", "constant"),
        Published("CAF with constant κ", _A, (0.2422, 0.2158), (0.77, 0.81), None, (0.74, 0.80), "caf", "constant"),
        Published("CAF with linear κ′", _R, (0.2201, 0.1982), (0.80, 0.84), None, (0.80, 0.84), "caf", "linear"),
        Published("CAF with linear κ′", _A, (0.2255, 0.1994), (0.79, 0.82), None, (0.80, 0.84), "caf", "linear"),
    ),
)


def published_table(dataset: str) -> PublishedTable:
    """The table to show beside a run: that of its data set if the paper has one, else the ablation on AffectNet.

    Example:
        >>> published_table("afew-va").name, published_table("faces").name
        ('Table 2', 'Table 4')
    """
    return {"afew-va": TABLE_2, "aff-wild": TABLE_3}.get(dataset, TABLE_4)


def published_row(table: PublishedTable, critic: str, margin: str, encoder: str) -> Published | None:
    """The row of an arm, with AlexNet if that is the encoder and ResNet18 otherwise; None if the paper has none.

    Example:
        >>> published_row(TABLE_4, "caf", "constant", "small").ccc
        (0.76, 0.8)
    """
    backbone = _A if encoder == "alexnet" else _R
    for row in table.rows:
        if (row.backbone, row.critic) == (backbone, critic) and row.margin in (None, margin):
            return row
    return None


def impossible(row: Published) -> list[str]:
    """The labels for which the row's RMSE is impossible with its correlation on AffectNet's usual validation labels.

    See :func:`~adaptive_margin.metrics.feasible`; figures may be off by half a unit of the correlation's last place.
    Table 4 prints no PCC: its row of CAF is that of Table 1.

    Example:
        >>> impossible(TABLE_1.rows[6]), impossible(TABLE_1.rows[4])
        (['valence', 'arousal'], [])
    """
    known = (row.backbone, row.rmse, row.ccc)
    pcc = row.pcc or next((one.pcc for one in TABLE_1.rows if (one.backbone, one.rmse, one.ccc) == known), None)
    if row.rmse is None or row.ccc is None or pcc is None:
        return []
    return [
        label
        for i, label in enumerate(("valence", "arousal"))
        if not feasible(row.rmse[i], pcc[i], AFFECTNET_SD[label], rounding=0.005, ccc=row.ccc[i])
    ]
