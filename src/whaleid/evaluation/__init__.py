"""Answers and their scores.

forms.py       registry of the forms of answer
topk.py        the form `topk`: ranked guesses for each image, scored by MAP@k
metrics.py     MAP@k with its interval and slices, from arrays
one_or_unknown.py   one identity or unknown for each image: BAKS, BAUS
one_confident.py    one label with a confidence: GAP
ranked_images.py    gallery images for each query: mAP@k
pairs.py       a similarity for each pair of images: identity-balanced mAP
clusters.py    a cluster for each image: adjusted Rand index
agglomeration.py    clusters under constraints, from pairs
form_input.py  what the five are made from: ranked identities, pairs of images
submission_file.py  writing any form into the sample's rows
form_score.py  value and interval of the five
frames.py      their files as data frames
rank_metrics.py   CMC, Recall@k, mINP
rejection.py   known or unknown: ROC, rejection curve, threshold
tables.py      columns of images and labels, for every form
log.py         one row for every submission
retrieval_metrics.py   Recall@k, MAP@R and NMI of embeddings
"""
