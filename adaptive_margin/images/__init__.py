"""Images on disk: decoding, an image cache, layouts of folders, transforms. Knows paths and boxes, and no labels.

Needs the extra ``fer`` or ``dml``: ``pip install -e '.[fer]'`` in a clone.
"""

from ..messages import require_extra

require_extra("adaptive_margin.images", "fer", "PIL", "filelock")

from .cache import ImageCache, cache_bytes  # noqa: E402
from .decode import read_image  # noqa: E402
from .errors import CacheSpaceError, ImageError, LabelFileError, LayoutError, UnreadableError  # noqa: E402
from .image_list import ImageList, StoredImage  # noqa: E402

__all__ = [
    "CacheSpaceError",
    "ImageCache",
    "ImageError",
    "ImageList",
    "LabelFileError",
    "LayoutError",
    "StoredImage",
    "UnreadableError",
    "cache_bytes",
    "read_image",
]
