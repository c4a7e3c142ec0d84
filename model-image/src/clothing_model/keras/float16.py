"""Half precision: large weights stored as float16, cast to float32 in the graph.

A model is half the bytes and computes in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

# Below that, a weight is not worth a cast; biases and the statistics of normalisations stay exact as well.
SMALLEST = 1024


def halved(call: Callable[[Any], Any], spec: Any) -> tuple[list[Any], Callable[[Any], Any]]:
    """The variables to save as float16, and the function that computes with them.

    Other weights are constants of its graph. The function's graph is rewritten, not the layers, so that it works for
    any source of the model.
    """
    frozen = convert_variables_to_constants_v2(
        tf.function(call, input_signature=[spec]).get_concrete_function(), lower_control_flow=False
    )
    graph = frozen.graph.as_graph_def()
    variables: dict[str, Any] = {}
    for node in graph.node:
        if node.op != "Const" or node.attr["dtype"].type != tf.float32.as_datatype_enum:
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        if value.ndim < 2 or value.size < SMALLEST:
            continue
        with np.errstate(over="ignore"):  # what is too large for it shows in the scores, which are compared
            variables[f"{node.name}:0"] = tf.Variable(value.astype(np.float16), trainable=False)
        node.op = "Placeholder"
        del node.attr["value"]

    def computed(photos: Any) -> Any:
        weights = {name: tf.cast(variable, tf.float32) for name, variable in variables.items()}
        (scores,) = tf.graph_util.import_graph_def(
            graph, {frozen.inputs[0].name: photos, **weights}, [frozen.outputs[0].name], name=""
        )
        return scores

    return list(variables.values()), computed
