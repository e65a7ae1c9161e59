"""The language of Accord: nouns, contracts, configuration, and the model that sampler and learner run alike."""

__version__ = "0.1.0"
