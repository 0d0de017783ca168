"""Old name of `topk.py`."""

from whaleid.evaluation.topk import check_submission, read_guesses, score_submission, write_submission

__all__ = ["check_submission", "read_guesses", "score_submission", "write_submission"]
