"""Wrong rules, planted in the analysis one at a time, are caught by a trap or a random program."""

import jax
import numpy as np
import pytest
from hypothesis import Phase, given

import normjax
from normjax.tracing import layer_maps, rules, trace, walk
from tests.helpers.damage import fuzz
from tests.helpers.random_programs import programs
from tests.structure.fuzzed import examine
from tests.structure.test_traps import TRAPS
from tests.structure.trap import is_passed

MUTANTS = {}


def mutant(plant):
    MUTANTS[plant.__name__] = plant
    return plant


def rule(name, function):
    """Add the mutant that replaces the rule of one or several primitives."""

    def plant(patch):
        for primitive in name.split():
            patch.setitem(rules.RULES, primitive, function)

    MUTANTS[f"{name} {function.__name__.strip('_')}"] = plant


def first(demands, eqn, values):
    """The rule that looks at the first operand only."""
    return values[0].exponents if values else {}


def second(demands, eqn, values):
    return values[1].exponents


def unscaled(demands, eqn, values):
    """The rule of a result that never scales."""
    return {}


def product(demands, eqn, values):
    exponents = [value.exponents for value in values[:2]]
    return None if None in exponents else rules.combine(*((1, e) for e in exponents))


for names in (
    "add sub",
    "max min",
    "exp",
    "tanh",
    "round floor ceil",
    "cumprod",
    "integer_pow",
    "square",
    "sqrt",
    "rsqrt",
    "pow",
    "reduce_prod",
    "convert_element_type",
    "concatenate",
    "clamp",
    "pad",
    "gather",
    "dynamic_update_slice",
    "scatter",
    "scatter-add",
    "scatter-mul",
    "dot_general",
    "rem",
    "pure_callback",
    "bitcast_convert_type",
):
    rule(names, first)
rule("add", product)
rule("div", product)
rule("select_n", second)
rule("mul", rules.RULES["add"])
rule("gt lt ge le", unscaled)
rule("argmax argmin", first)
rule("atan2", unscaled)
rule("logistic expm1", unscaled)


@mutant
def unknown_primitives_keep(patch):
    known = dict(rules.RULES)

    class Rules(dict):
        def get(self, name, default):
            return known.get(name, first)

    patch.setattr(rules, "RULES", Rules())


@mutant
def all_values_of_sort_scale_as_keys(patch):
    patch.setitem(rules.RULES, "sort", lambda _, eqn, v: [v[0].exponents] * len(eqn.outvars))


@mutant
def constants_have_any_exponent(patch):
    for module in (rules, walk):
        patch.setattr(module, "constant_value", lambda value: rules.Value(None))


@mutant
def only_real_parts_of_constants(patch):
    old = rules.constant_value

    def constant_value(value):
        if np.iscomplexobj(value) and not np.any(np.isfinite(value)):
            return rules.Value(None)
        return old(value)

    for module in (rules, walk):
        patch.setattr(module, "constant_value", constant_value)


@mutant
def integers_may_have_any_exponent(patch):
    def apply_rule(demands, eqn, values):
        return rules.RULES.get(eqn.primitive.name, rules._held)(demands, eqn, values)

    patch.setattr(walk, "apply_rule", apply_rule)


@mutant
def power_zero_of_zero_is_zero(patch):
    def times(exponent, exponents):
        return None if exponents is None else rules.combine((exponent, exponents))

    patch.setattr(rules, "_times", times)


@mutant
def fill_value_ignored(patch):
    patch.setitem(rules.RULES, "gather", rules.RULES["dynamic_slice"])
    old = rules.constant_value
    patch.setattr(rules, "constant_value", lambda value: old(np.zeros(())))


@mutant
def biases_are_constants(patch):
    def alike(demands, eqn, values):
        return demands.equate([value for value in values if value.is_data] or values)

    patch.setitem(rules.RULES, "add", alike)


@mutant
def one_pass_of_loops(patch):
    def settled(walk_, step, carry):
        return [walk._merge(walk_, pair) for pair in zip(carry, step(carry), strict=True)]

    patch.setattr(walk, "_settled", settled)


@mutant
def loops_keep_their_start(patch):
    def settled(walk, step, carry):
        step(carry)
        return [value._replace(facts=layer_maps.Facts()) for value in carry]

    patch.setattr(walk, "_settled", settled)


@mutant
def condition_of_loop_ignored(patch):
    def loop(walk_, params, values):
        skipped = params["cond_nconsts"] + params["body_nconsts"]
        consts = values[params["cond_nconsts"] : skipped]
        body = lambda carry: walk_.run(params["body_jaxpr"], [*consts, *carry])  # noqa: E731
        return walk._settled(walk_, body, values[skipped:])

    patch.setitem(walk._CONTROL_FLOW, "while", loop)


@mutant
def first_branch_only(patch):
    def cond(walk_, params, values):
        return walk_.run(params["branches"][0], values[1:])

    patch.setitem(walk._CONTROL_FLOW, "cond", cond)


@mutant
def one_step_of_scans(patch):
    old = walk._scan
    patch.setitem(walk._CONTROL_FLOW, "scan", lambda w, p, v: old(w, {**p, "length": 1}, v))


@mutant
def scans_read_the_first_part(patch):
    old = walk._row
    patch.setattr(walk, "_row", lambda value, shape, step: old(value, shape, 0))


@mutant
def reversed_rows_are_parts(patch):
    old = layer_maps._moved

    def moved(fact, shape, name, params, new_shape):
        found = old(fact, shape, name, params, new_shape)
        if found.relaid is None:
            return found
        return found._replace(relaid=found.relaid._replace(flipped=frozenset()))

    patch.setattr(layer_maps, "_moved", moved)


@mutant
def effects_are_dead_code(patch):
    def live_equations(jaxpr, outputs):
        used = {v for v in outputs if not isinstance(v, walk.Literal)}
        live = []
        for eqn in reversed(jaxpr.eqns):
            if any(v in used for v in eqn.outvars):
                live.append(eqn)
                used.update(v for v in eqn.invars if not isinstance(v, walk.Literal))
        return live[::-1], used

    patch.setattr(walk, "live_equations", live_equations)


@mutant
def whole_leaves_forgotten(patch):
    patch.setattr(walk.Walk, "note_whole", lambda self, values: None)


@mutant
def custom_functions_are_identities(patch):
    patch.setattr(walk, "_CALLS", {k: v for k, v in walk._CALLS.items() if "custom" not in k})
    for name in ("custom_vjp_call", "custom_jvp_call"):
        patch.setitem(rules.RULES, name, first)


@mutant
def equations_are_forgotten(patch):
    old = trace.solve
    patch.setattr(trace, "solve", lambda equations, *rest: old(list(equations)[:1], *rest))


def random_programs(count):
    """Return random programs, and what the analysis without a mutant makes of them."""
    found = []

    @fuzz(max_examples=count, phases=[Phase.generate])
    @given(programs())
    def collect(program):
        found.append((program, examine(program)))

    collect()
    return found


def is_right(program, outcome):
    """Whether the structure of a program is right, which it is if it has not changed."""
    with jax.enable_x64(True):
        structure = normjax.trace_structure(program.apply, *program.draw())
    if structure != outcome.structure:
        try:
            examine(program)
        except AssertionError:
            return False
    return True


@pytest.fixture
def planted(request, monkeypatch):
    MUTANTS[request.param](monkeypatch)
    return request.param


@pytest.mark.parametrize("planted", MUTANTS, indirect=True)
def test_a_trap_catches_every_mutant(planted):
    assert not all(map(is_passed, TRAPS))


@pytest.mark.slow
def test_random_programs_catch_most_mutants():
    missed, found = [], random_programs(400)
    for name, plant in MUTANTS.items():
        concerned = set(name.split()[:-1])  # the primitives of a wrong rule
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            if all(
                is_right(*one) for one in found if not concerned or concerned & one[1].primitives
            ):
                missed.append(name)
    assert len(missed) < len(MUTANTS) / 2, missed


def test_without_mutants_nothing_is_caught():
    assert all(map(is_passed, TRAPS))
