"""Drawn faces: a data set of valence and arousal from faces that needs no download.

People (:func:`sample_identities`) and feelings (:func:`action_units`) are separate. A picture shows a person's resting
face plus the person's expressivity times the action units of the feeling, disturbed by pose, light, background, blur,
noise and occlusion. The bytes are determined by the seed.
"""

from ._geometry import boxes, landmarks
from .dataset import FacesDataset, split_people
from .draw import draw_faces, draw_frames, face_geometry
from .expression import ActionUnits, FaceShape, action_units, face_shape
from .identity import BEARD_STYLES, GLASSES_STYLES, HAIR_STYLES, FaceIdentity, sample_identities, vary
from .labels import sample_labels
from .nuisance import Nuisance, sample_nuisance, still_nuisance
from .video import FaceVideo, draw_video, trajectory

__all__ = [
    "BEARD_STYLES",
    "GLASSES_STYLES",
    "HAIR_STYLES",
    "ActionUnits",
    "FaceIdentity",
    "FaceShape",
    "FaceVideo",
    "FacesDataset",
    "Nuisance",
    "action_units",
    "boxes",
    "draw_faces",
    "draw_frames",
    "draw_video",
    "face_geometry",
    "face_shape",
    "landmarks",
    "sample_identities",
    "sample_labels",
    "sample_nuisance",
    "split_people",
    "still_nuisance",
    "trajectory",
    "vary",
]
