"""The engine's place is taken before the tests import what uses it."""

from tests.generation import stand_in

stand_in.install()
