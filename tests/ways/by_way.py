"""Plans whose layers run by one way."""


def by_way(plan, way):
    """The plan with a way for every layer that has it."""
    return plan.with_ways({r.node.index: way for r in plan.rules if r is not None and way in r.all_ways()})
