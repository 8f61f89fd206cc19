"""Evaluation that others do not provide, or define differently."""

from .affect import AffectMetrics, Interval, bootstrap_interval, feasible, rmse_bounds

__all__ = ["AffectMetrics", "Interval", "bootstrap_interval", "feasible", "rmse_bounds"]
