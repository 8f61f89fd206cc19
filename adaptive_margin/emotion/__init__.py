"""Contrastive adversarial learning of valence and arousal from faces: the paper's system, and its ablations."""
