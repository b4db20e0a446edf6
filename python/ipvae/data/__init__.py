"""Data sets, and moving input made from them."""

from ipvae.data.datasets import DATASETS, load_dataset, load_whole
from ipvae.data.feeders import Feeder, JitterFeeder, RotationFeeder, SequenceFeeder
from ipvae.data.mnist import DownloadError
from ipvae.data.splits import DataSplits
from ipvae.data.video import video_clips, video_frames

__all__ = [
    "DATASETS",
    "DataSplits",
    "DownloadError",
    "Feeder",
    "JitterFeeder",
    "RotationFeeder",
    "SequenceFeeder",
    "load_dataset",
    "load_whole",
    "video_clips",
    "video_frames",
]
