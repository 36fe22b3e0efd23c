"""How fast steps, data and evaluations are and what memory they take, as ratios between contenders of one run."""

from .command import bench as bench
from .data_speed import bench_data as bench_data
from .estimate import bench_estimate as bench_estimate
from .evaluation_speed import bench_evaluate as bench_evaluate
from .video_speed import bench_videos as bench_videos
