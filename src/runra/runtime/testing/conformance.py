"""What every sandbox provider must do, and what it must do when it declares an ability. See `runra.runtime.testing`."""

from runra.runtime.testing.bench import Bench as Bench
from runra.runtime.testing.bench import bench as bench
from runra.runtime.testing.bench import sandbox as sandbox
from runra.runtime.testing.suite.abilities import *  # noqa: F403 - here and below: its tests are what is wanted
from runra.runtime.testing.suite.commands import *  # noqa: F403
from runra.runtime.testing.suite.files import *  # noqa: F403
from runra.runtime.testing.suite.life import *  # noqa: F403
