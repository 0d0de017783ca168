"""Answers and their scores.

forms.py       registry of the forms of answer
topk.py        the form `topk`: ranked guesses for each image, scored by MAP@k
metrics.py     MAP@k with its interval and slices, from arrays
tables.py      columns of images and labels, for every form
log.py         one row for every submission
retrieval_metrics.py   Recall@k, MAP@R and NMI of embeddings
"""
