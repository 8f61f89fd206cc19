"""The drawn video of a report shows somebody whom no part of the data has, as the network sees them."""

from __future__ import annotations

import numpy as np
import torch

from adaptive_margin.emotion._drawn_video import evaluate_drawn_video
from adaptive_margin.emotion.nets import emotion_net
from adaptive_margin.faces import FacesDataset, sample_identities
from adaptive_margin.images.transforms import centre


def test_frames_of_somebody_new() -> None:
    net = emotion_net("small").eval()
    found, picture = evaluate_drawn_video(net, people=12, resize=48, size=44, seed=5, n_frames=7)
    assert found.frame.tolist() == list(range(7))
    assert set(found.video) == {"drawn person 12"}
    images = torch.from_numpy(np.stack([picture(row) for row in range(7)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = net(centre(images, 44)).numpy()
    np.testing.assert_allclose(found.prediction, expected, atol=1e-6)
    data = FacesDataset(12, 1, size=48, seed=5)
    everyone = sample_identities(13, seed=5)
    for name in ("eye_spacing", "mouth_y", "brow_y"):
        assert getattr(everyone, name)[12] not in getattr(data.identities, name)
    np.testing.assert_array_equal(everyone.eye_spacing[:12], data.identities.eye_spacing)
