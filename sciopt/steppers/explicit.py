"""Explicit methods: adaptive pairs of order 5 and 3, and the classical ones of fixed step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from sciopt.steppers.abstract import check_one_step
from sciopt.steppers.tableau import AbstractExplicit, Tableau, hermite

__all__ = ["RK4", "Bosh3", "Dopri5", "Euler", "Midpoint", "Tsit5"]

TSIT5 = Tableau(
    a=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    ),
    b=(0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0.0),
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        0.015151515151515152,
    ),
    dense=(
        (0.9999999999999998, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.13169999999999998, -0.2234, 0.1017),
        (0.0, 3.930296236894751, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.338188630282318, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479368, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
    last=True,
)
DOPRI5 = Tableau(
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    dense=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    last=True,
)
BOSH3 = Tableau(
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    dense=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    last=True,
)
EULER = Tableau(a=(), b=(1.0,), error=(), dense=((1.0,),), last=False)
MIDPOINT = Tableau(a=((0.5,), (0.0, 1.0)), b=(0.0, 1.0, 0.0), error=(), dense=hermite((0.0, 1.0, 0.0)), last=True)
CLASSICAL = (1 / 6, 1 / 3, 1 / 3, 1 / 6, 0.0)
RK4_TABLE = Tableau(
    a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), CLASSICAL[:-1]), b=CLASSICAL, error=(), dense=hermite(CLASSICAL), last=True
)


@final
@dataclass(frozen=True, kw_only=True)
class Tsit5(AbstractExplicit):
    """Tsitouras 5(4): the explicit method to start with.

    Six evaluations a step, an interpolant of order 4. For stiff systems use an implicit stepper.

    Args:
        rtol: relative tolerance of the local error, in a root-mean-square norm over each problem's whole state; None: 1e-6 in
            float64, 1e-4 in float32.
        atol: absolute tolerance, in units of the state; None: 1e-9 in float64, 1e-6 in float32.
        max_steps: trial steps of one problem, accepted or not.
        first_step: length of the first step, in units of time; None: chosen from the first two slopes.
        num_steps: take this many equal steps, without error control; None: adaptive.
        compiled: do all but the right-hand side in code that is compiled once, by the C compiler of the machine, and kept in
            the user's cache (float64 and float32 on the CPU, with error control); ``solution.aux["compiled"]`` tells by what,
            or why not: then the steps are taken as without it.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> import torch
        >>> from sciopt import InitialValue, best_response
        >>> growth = InitialValue(lambda t, y, rate: rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> one = torch.ones((), dtype=torch.float64)
        >>> f"{best_response(growth, one, init=one, solver=Tsit5(rtol=1e-8)).value[-1].item():.6f}"
        '2.718282'

    References:
        Tsitouras. "Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption". Computers &
        Mathematics with Applications 62 (2011).
    """

    order: ClassVar = 5
    error_order: ClassVar = 5
    dense_order: ClassVar = 4
    first_same: ClassVar = True
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    first_step: float | None = None
    num_steps: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)

    @property
    def tableau(self) -> Tableau:
        return TSIT5


@final
@dataclass(frozen=True, kw_only=True)
class Dopri5(AbstractExplicit):
    """Dormand-Prince 5(4): the pair of `ode45` and of most other packages.

    Six evaluations a step, an interpolant of order 4. `Tsit5` is usually a little faster at the same error.

    Args:
        rtol: relative tolerance of the local error, in a root-mean-square norm over each problem's whole state; None: 1e-6 in
            float64, 1e-4 in float32.
        atol: absolute tolerance, in units of the state; None: 1e-9 in float64, 1e-6 in float32.
        max_steps: trial steps of one problem, accepted or not.
        first_step: length of the first step, in units of time; None: chosen from the first two slopes.
        num_steps: take this many equal steps, without error control; None: adaptive.
        compiled: do all but the right-hand side in code that is compiled once, by the C compiler of the machine, and kept in
            the user's cache (float64 and float32 on the CPU, with error control); ``solution.aux["compiled"]`` tells by what,
            or why not: then the steps are taken as without it.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> import torch
        >>> from sciopt import InitialValue, best_response
        >>> growth = InitialValue(lambda t, y, rate: rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> one = torch.ones((), dtype=torch.float64)
        >>> f"{best_response(growth, one, init=one, solver=Dopri5(rtol=1e-8)).value[-1].item():.6f}"
        '2.718282'

    References:
        Dormand, Prince. "A family of embedded Runge-Kutta formulae". Journal of Computational and Applied Mathematics 6
        (1980). Interpolant: Shampine. "Some practical Runge-Kutta formulas". Mathematics of Computation 46 (1986).
    """

    order: ClassVar = 5
    error_order: ClassVar = 5
    dense_order: ClassVar = 4
    first_same: ClassVar = True
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    first_step: float | None = None
    num_steps: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)

    @property
    def tableau(self) -> Tableau:
        return DOPRI5


@final
@dataclass(frozen=True, kw_only=True)
class Bosh3(AbstractExplicit):
    """Bogacki-Shampine 3(2): for loose tolerances.

    Three evaluations a step, a cubic interpolant; cheaper than `Tsit5` for relative tolerances above about 1e-3.

    Args:
        rtol: relative tolerance of the local error, in a root-mean-square norm over each problem's whole state; None: 1e-6 in
            float64, 1e-4 in float32.
        atol: absolute tolerance, in units of the state; None: 1e-9 in float64, 1e-6 in float32.
        max_steps: trial steps of one problem, accepted or not.
        first_step: length of the first step, in units of time; None: chosen from the first two slopes.
        num_steps: take this many equal steps, without error control; None: adaptive.
        compiled: do all but the right-hand side in code that is compiled once, by the C compiler of the machine, and kept in
            the user's cache (float64 and float32 on the CPU, with error control); ``solution.aux["compiled"]`` tells by what,
            or why not: then the steps are taken as without it.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> import torch
        >>> from sciopt import InitialValue, best_response
        >>> growth = InitialValue(lambda t, y, rate: rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> one = torch.ones((), dtype=torch.float64)
        >>> f"{best_response(growth, one, init=one, solver=Bosh3(rtol=1e-6)).value[-1].item():.5f}"
        '2.71828'

    References:
        Bogacki, Shampine. "A 3(2) pair of Runge-Kutta formulas". Applied Mathematics Letters 2 (1989).
    """

    order: ClassVar = 3
    error_order: ClassVar = 3
    dense_order: ClassVar = 3
    first_same: ClassVar = True
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    first_step: float | None = None
    num_steps: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)

    @property
    def tableau(self) -> Tableau:
        return BOSH3


@final
@dataclass(frozen=True, kw_only=True)
class Euler(AbstractExplicit):
    """Explicit Euler, order 1: one evaluation a step, equal steps.

    For residual networks read as flows, and for tests.

    Args:
        rtol: relative tolerance of the local error, in a root-mean-square norm over each problem's whole state; None: 1e-6 in
            float64, 1e-4 in float32. Not read: the method estimates no
            error.
        atol: absolute tolerance, in units of the state; None: 1e-9 in float64, 1e-6 in float32.
        max_steps: trial steps of one problem, accepted or not.
        first_step: length of the first step, in units of time; None: chosen from the first two slopes.
        num_steps: take this many equal steps, without error control (needed).
        compiled: not read: equal steps are not compiled.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> import torch
        >>> from sciopt import InitialValue, best_response
        >>> growth = InitialValue(lambda t, y, rate: rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> one = torch.ones((), dtype=torch.float64)
        >>> f"{best_response(growth, one, init=one, solver=Euler(num_steps=2)).value[-1].item():.3f}"
        '2.250'

    References:
        Euler. "Institutiones calculi integralis" (1768).
    """

    order: ClassVar = 1
    error_order: ClassVar = 0
    dense_order: ClassVar = 1
    first_same: ClassVar = False
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    first_step: float | None = None
    num_steps: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)

    @property
    def tableau(self) -> Tableau:
        return EULER


@final
@dataclass(frozen=True, kw_only=True)
class Midpoint(AbstractExplicit):
    """Explicit midpoint rule, order 2: two evaluations a step, equal steps.

    For quick looks at smooth systems.

    Args:
        rtol: relative tolerance of the local error, in a root-mean-square norm over each problem's whole state; None: 1e-6 in
            float64, 1e-4 in float32. Not read: the method estimates no
            error.
        atol: absolute tolerance, in units of the state; None: 1e-9 in float64, 1e-6 in float32.
        max_steps: trial steps of one problem, accepted or not.
        first_step: length of the first step, in units of time; None: chosen from the first two slopes.
        num_steps: take this many equal steps, without error control (needed).
        compiled: not read: equal steps are not compiled.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> import torch
        >>> from sciopt import InitialValue, best_response
        >>> growth = InitialValue(lambda t, y, rate: rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> one = torch.ones((), dtype=torch.float64)
        >>> f"{best_response(growth, one, init=one, solver=Midpoint(num_steps=1)).value[-1].item():.3f}"
        '2.500'

    References:
        Hairer, Norsett, Wanner. "Solving Ordinary Differential Equations I", II.1.
    """

    order: ClassVar = 2
    error_order: ClassVar = 0
    dense_order: ClassVar = 2
    first_same: ClassVar = True
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    first_step: float | None = None
    num_steps: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)

    @property
    def tableau(self) -> Tableau:
        return MIDPOINT


@final
@dataclass(frozen=True, kw_only=True)
class RK4(AbstractExplicit):
    """The classical Runge-Kutta method, order 4: four evaluations a step, equal steps.

    For smooth systems when every run must cost the same.

    Args:
        rtol: relative tolerance of the local error, in a root-mean-square norm over each problem's whole state; None: 1e-6 in
            float64, 1e-4 in float32. Not read: the method estimates no
            error.
        atol: absolute tolerance, in units of the state; None: 1e-9 in float64, 1e-6 in float32.
        max_steps: trial steps of one problem, accepted or not.
        first_step: length of the first step, in units of time; None: chosen from the first two slopes.
        num_steps: take this many equal steps, without error control (needed).
        compiled: not read: equal steps are not compiled.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> import torch
        >>> from sciopt import InitialValue, best_response
        >>> growth = InitialValue(lambda t, y, rate: rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> one = torch.ones((), dtype=torch.float64)
        >>> f"{best_response(growth, one, init=one, solver=RK4(num_steps=10)).value[-1].item():.5f}"
        '2.71828'

    References:
        Kutta. "Beitrag zur naherungsweisen Integration totaler Differentialgleichungen". Zeitschrift fur Mathematik und
        Physik 46 (1901).
    """

    order: ClassVar = 4
    error_order: ClassVar = 0
    dense_order: ClassVar = 3
    first_same: ClassVar = True
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    first_step: float | None = None
    num_steps: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)

    @property
    def tableau(self) -> Tableau:
        return RK4_TABLE
