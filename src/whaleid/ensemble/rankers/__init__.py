"""Rankers: everything that gives candidates. One file each, or one for those that share their inputs.

`base.Ranker` is their interface, `registry.RANKERS` the list of them in the order of the ladder. To add a ranker, write
a class with that interface and add one line to the list.
"""
