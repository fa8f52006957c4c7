"""How much is measured, and how long it may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Counts of runs, and times in seconds; the defaults are those of a full bench."""

    minutes: int = 15  # for everything, coming and going included
    blocks: int = 2  # of lateness, ours and stock alternating
    least_lead: int = 15  # how far ahead a run is scheduled, or the worker's prefetch and 5 s
    ours_late: int = 15  # runs a block
    ours_apart: int = 3
    fork_late: int = 30  # a second apart
    stock_late: int = 5
    stock_apart: int = 7  # a run of stock's takes five seconds or more
    together: int = 10  # due at the same second
    groups: int = 2  # of ad-hoc runs, ours, stock and floor alternating
    ours_ad_hoc: int = 10  # runs a group
    stock_ad_hoc: int = 4
    floor_ad_hoc: int = 10
    asking: int = 10  # rounds of questions to the engine, as bench/ask.py has them
    burst: int = 10
    big_burst: int = 50  # 0: none
    idle: int = 60
    levels: tuple[int, ...] = (20, 200)  # deployments with a schedule; all else has one
    level_late: int = 10
    level_idle: int = 20
    vacuum: int = 60


FULL = Sizes()
QUICK = Sizes(
    minutes=8,
    blocks=1,
    ours_late=4,
    fork_late=4,
    stock_late=2,
    together=3,
    groups=1,
    ours_ad_hoc=3,
    stock_ad_hoc=2,
    floor_ad_hoc=3,
    asking=2,
    burst=3,
    big_burst=0,
    idle=10,
    levels=(5,),
    level_late=3,
    level_idle=5,
    vacuum=30,
)
