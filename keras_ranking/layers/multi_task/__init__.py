"""Several tasks over shared layers."""

from keras_ranking.layers.multi_task.grouped_tasks import GroupedTasks
from keras_ranking.layers.multi_task.mlp_bank import MLPBank
from keras_ranking.layers.multi_task.mmoe import MMoE
from keras_ranking.layers.multi_task.multi_task_head import MultiTaskHead
from keras_ranking.layers.multi_task.ple import PLE
from keras_ranking.layers.multi_task.shared_bottom import SharedBottom
from keras_ranking.layers.multi_task.sparse_mmoe import SparseMMoE

__all__ = ["PLE", "GroupedTasks", "MLPBank", "MMoE", "MultiTaskHead", "SharedBottom", "SparseMMoE"]
