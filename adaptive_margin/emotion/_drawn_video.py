"""A drawn video of a new person, for the report: the paper's Figure 3 for a data set without videos."""

from __future__ import annotations

import numpy as np

from ..affect.batches import CachedBatches
from ..faces import draw_video, sample_identities, vary
from .evaluation import Evaluation, Pictures, evaluate
from .nets import EmotionNet


def evaluate_drawn_video(
    net: EmotionNet,
    *,
    people: int,
    resize: int,
    size: int,
    seed: int = 0,
    n_frames: int = 240,
    person_effect: float = 1.0,
) -> tuple[Evaluation, Pictures]:
    """Draws a video of a person who is in no part of a data set of drawn faces, and runs a network on it.

    Args:
        net: encoder and regressor.
        people: how many people the data set has in all parts together; the next one is drawn.
        resize: side of a frame, pixels.
        size: side of the crop that the network sees, pixels.
        seed: seed of the data set, which determines the person.
        n_frames: how many frames.
        person_effect: of the data set.

    Returns:
        The network's results for the frames, and the picture of each row: the ``video`` and ``video_pictures`` of
        :func:`~adaptive_margin.emotion.evaluation.write_evaluation`.

    Example:
        >>> from adaptive_margin.emotion.nets import emotion_net
        >>> found, picture = evaluate_drawn_video(emotion_net("small"), people=10, resize=64, size=60, n_frames=6)
        >>> len(found), picture(0).shape
        (6, (64, 64, 3))
    """
    somebody = vary(sample_identities(people + 1, seed=seed).take(np.array([people])), person_effect)
    video = draw_video(somebody, n_frames, size=resize, seed=seed, person=people)
    batches = CachedBatches(video.images, video.av, batch_size=128, train=False, size=size, prefetch=0)
    names = [f"drawn person {people}"] * n_frames
    found = evaluate(net, batches, videos=names, frames=np.arange(n_frames))
    return found, lambda row: video.images[row]
