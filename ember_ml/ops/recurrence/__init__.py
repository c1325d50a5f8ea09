"""Recurrences over time with gradients in bounded memory: parallel = chunked = scan of steps."""

from ember_ml.ops.recurrence.cfc import cfc
from ember_ml.ops.recurrence.chunks import over_chunks
from ember_ml.ops.recurrence.cumulative import cumlogsumexp, cummax, cummin, cumprod, cumsum, cumulative_prod, cumulative_sum, diff
from ember_ml.ops.recurrence.delta_rule import delta_rule, gated_delta_rule
from ember_ml.ops.recurrence.gated_scan import gated_scan
from ember_ml.ops.recurrence.linear_attention import linear_attention
from ember_ml.ops.recurrence.linear_scan import linear_scan
from ember_ml.ops.recurrence.ltc import ltc
from ember_ml.ops.recurrence.mixed_memory import Memory
from ember_ml.ops.recurrence.mlstm import mlstm
from ember_ml.ops.recurrence.rnn import gru, lstm, rnn
from ember_ml.ops.recurrence.selective_scan import selective_scan
from ember_ml.ops.recurrence.wkv import wkv

__all__ = [name for name in dir() if not name.startswith("_")]
