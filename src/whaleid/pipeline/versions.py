"""The version of each stage's output.

Raise a stage's version when its code changes what it writes, in form or in meaning: what older code wrote, and
all that was made from it, is then made anew. `tests/test_versions.py` fails where an output changes under an
unchanged version.
"""

VERSION = {
    "images": 2,
    "folds": 1,
    "cache": 2,
    "keypoints": 3,
    "pretrain": 1,
    "train": 1,
    "features": 1,
    "labels": 2,
    "candidates": 15,
    "context": 2,
    "score": 1,
}
