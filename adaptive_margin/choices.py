"""Names that options take. They are here, without PyTorch, because command lines list them before it is loaded."""

from typing import Literal

Regularizer = Literal["none", "chi2", "fisher"]
NeighbourhoodName = Literal["auto", "remaining", "attainable", "hoeffding", "chernoff", "released"]
Precision = Literal["float32", "bfloat16", "float16"]

CriticName = Literal["caf", "fisher", "sphere", "gramnet", "none"]
MarginName = Literal["adaptive", "constant", "linear", "released"]
GroupingName = Literal["otsu", "kmeans2", "kmeans3", "kmeans5"]
TermName = Literal["none", "grl", "uniform-id", "elim", "label-distance"]
Order = Literal["paper", "joint"]
WeakBatchNorm = Literal["whole", "weak", "running"]

DetectorName = Literal["auto", "mtcnn", "haar"]
