"""The garbage collector of a worker or gateway: its passes must not hold up thousands of sessions.

A pass took 12 ms for 10,000 objects and 107 ms for all that 300 running tasks have; in a gateway
180 ms of CPU for those of 3,000 sockets. A task that has ended leaves nothing in circles
(`TaskLog.close`), so there is little to look for.
"""

import gc

_NEW, _YOUNG, _OLD = 2_000, 5, 100
"""How many more containers than before start a pass over the new ones, how many of these one over
the young ones, and how many of those one over all. Python's own are 700, 10 and 10."""


def steady_garbage() -> None:
    """Leave what the process was started with alone from now on, and look at the rest less often.

    A pass over all that lives then has only the sessions in flight to walk through.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW, _YOUNG, _OLD)
