"""Several tasks over shared layers."""

from keras_ranking.layers.multi_task.mlp_bank import MLPBank
from keras_ranking.layers.multi_task.mmoe import MMoE, SparseMMoE
from keras_ranking.layers.multi_task.multi_task import GroupedTasks, SharedBottom
from keras_ranking.layers.multi_task.multi_task_head import MultiTaskHead
from keras_ranking.layers.multi_task.ple import PLE

__all__ = ["PLE", "GroupedTasks", "MLPBank", "MMoE", "MultiTaskHead", "SharedBottom", "SparseMMoE"]
