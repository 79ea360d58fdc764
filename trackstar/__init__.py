"""TrackStar: training-data attribution for language models at the scale of their pretraining."""

__version__ = "0.1.0"
