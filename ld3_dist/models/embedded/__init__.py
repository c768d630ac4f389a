"""The frame of the embedded models: packaged weights of a small EDM network and its classifier.

An embedded model is a folder beside this one with its data, its network and its classifier. It
describes them by an `EmbeddedNetwork` and an `EmbeddedClassifier`. Loading, opening, training
losses, evaluation and provenance are here, once for all of them.
"""
