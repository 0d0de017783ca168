"""Divide and conquer the embedding space.

Sanakoyeu, Tschernezki, Büchler and Ommer, "Divide and Conquer the Embedding Space for Metric Learning" (CVPR 2019),
and Sanakoyeu, Ma, Tschernezki and Ommer, "Improving Deep Metric Learning by Divide and Conquer" (TPAMI 2021).

*Divide*: K-means clusters the training images in the feature space of the network as it is. *Learners*: each cluster
has a learner, a metric loss with parameters of its own on its own sub-space of the embedding, which is trained on
batches of that cluster only. Every M epochs the images are clustered again, and clusters are matched to the learners
they had before. *Conquer*: the sub-spaces are merged, and the full embedding is trained, first on batches of one
cluster, then on all images. `config.heads.DIVIDE_PRESETS` has the published schedules.

    schedule.py     which epoch does what, and the clustering between epochs
    clustering.py   K-means, cuts, matching, repair of small clusters
    learners.py     the head: learners and their sub-spaces
    sampler.py      batches of one cluster
"""
