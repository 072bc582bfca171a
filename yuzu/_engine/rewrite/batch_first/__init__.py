"""Keeps the batch on the first axis of every value, where a model moves it to another one."""

from yuzu._engine.rewrite.batch_first import axes, products, shapes  # these register their translations
from yuzu._engine.rewrite.batch_first.axes import order_of
from yuzu._engine.rewrite.batch_first.by_rows import treat_rows_alone
from yuzu._engine.rewrite.batch_first.form import Form, batch_axes
from yuzu._engine.rewrite.batch_first.rewriting import batch_first

__all__ = ["Form", "axes", "batch_axes", "batch_first", "order_of", "products", "shapes", "treat_rows_alone"]
