"""Families of primitives: what each kind of equation does to the entries of an array.

The analysis never asks what an activation is called. It asks whether an equation is
elementwise (each output entry depends on the same entry of its operands), layout (the
same entries in another order, shape or number type), a weight operation, or neither.
"""

# fmt: off
ELEMENTWISE = frozenset([
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan",
    "atan2", "atanh", "cbrt", "ceil", "clamp", "cos", "cosh", "digamma", "div",
    "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt",
    "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "rem",
    "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "sub", "tan", "tanh", "xor",
])

LAYOUT = frozenset([
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims",
    "optimization_barrier", "reduce_precision", "reshape", "rev",
    "sharding_constraint", "squeeze", "transpose",
])
# fmt: on

WEIGHT_OPERATIONS = frozenset(["conv_general_dilated", "dot_general"])

LOOKUPS = frozenset(["gather", "dynamic_slice", "take"])

WRAPPERS = frozenset(["custom_jvp_call", "custom_vjp_call"])
