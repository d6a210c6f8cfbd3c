"""Other tools' files read into plans: what exists becomes a plan, and whatever a plan cannot hold is listed."""

from moeplan.importers.imported import Imported as Imported
from moeplan.importers.imported import Unused as Unused
from moeplan.importers.megatron import read_megatron as read_megatron
from moeplan.importers.reading import FRAMEWORKS as FRAMEWORKS
from moeplan.importers.reading import read as read
